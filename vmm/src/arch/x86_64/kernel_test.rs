use std::io::Write;

use vm_memory::Bytes;

use super::*;

const MEMORY_END: u64 = 64 << 20;

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_END as usize)]).unwrap()
}

fn load(memory: &GuestMemory, path: &Path) -> Result<(Kernel, u64), KernelError> {
    let image = KernelImage::open(path, MEMORY_END)?;
    let end = image.end();
    Ok((image.load(memory)?, end))
}

/// The kernel, the end of the memory that it needs, and guest memory.
fn load_bytes(bytes: &[u8]) -> Result<(Kernel, u64, GuestMemory), String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let memory = memory();
    match load(&memory, file.path()) {
        Ok((kernel, end)) => Ok((kernel, end, memory)),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(&file.path().display().to_string()), "names the file: {text}");
            Err(text)
        }
    }
}

fn elf(edit: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut file = elf::tests::test_file(&[(0x1000, 0x100_0000, 0x800, 0x20_0000)], 0x100_0010);
    file.resize(0x1800, 0xaa);
    edit(&mut file);
    file
}

fn bzimage(edit: impl Fn(&mut setup_header)) -> Vec<u8> {
    let mut header = setup_header {
        setup_sects: 1,
        syssize: 0x100,
        header: BZIMAGE_MAGIC,
        version: 0x20f,
        loadflags: 1,
        code32_start: 0x10_0000,
        xloadflags: 1,
        pref_address: 0x100_0000,
        init_size: 0x20_0000,
        ..Default::default()
    };
    edit(&mut header);
    let mut file = vec![0; 1024];
    file[BZIMAGE_HEADER..BZIMAGE_HEADER + size_of::<setup_header>()].copy_from_slice(header.as_slice());
    file.resize(1024 + 0x1000, 0xbb);
    file
}

#[test]
fn both_formats_load() {
    let (kernel, end, memory) = load_bytes(&elf(|_| {})).unwrap();
    assert_eq!((kernel.entry.0, end), (0x100_0010, 0x120_0000));
    assert!(kernel.setup_header.is_none());
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0x100_07f8)).unwrap(), 0xaaaa_aaaa_aaaa_aaaa);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0x100_0800)).unwrap(), 0);

    let (kernel, end, memory) = load_bytes(&bzimage(|_| {})).unwrap();
    assert_eq!((kernel.entry.0, end), (0x10_0200, 0x120_0000));
    assert!(kernel.setup_header.is_some());
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0x10_0ff8)).unwrap(), 0xbbbb_bbbb_bbbb_bbbb);
}

#[test]
fn an_error_names_a_file_that_is_not_a_kernel() {
    let expect = |bytes: &[u8], part: &str| {
        let error = load_bytes(bytes).unwrap_err();
        assert!(error.contains(part), "{error}");
    };
    expect(b"", "found an empty file");
    expect(b"\x1f\x8b\x08", "found gzip data");
    expect(b"MZ\0\0zimg\0\0\0\0", "found an EFI zboot image (");
    expect(b"MZ\x90\0", "found an EFI program without");
    expect(b"070701", "cpio");
    expect(b"hello", "begins with [68, 65, 6c, 6c, 6f]");
    expect(&[0; 4096], "begins with [00, 00");
    expect(&elf(|file| file[18] = 183), "is not an x86-64 kernel");
    expect(&elf(|file| file.truncate(40)), "is not an x86-64 kernel");
    expect(&bzimage(|header| header.version = 0x20b), "no 64-bit entry");
    expect(&bzimage(|header| header.xloadflags = 2), "no 64-bit entry");
    let directory = load(&memory(), Path::new("/proc")).unwrap_err().to_string();
    assert!(directory.contains("not a regular file"), "{directory}");
    let missing = load(&memory(), Path::new("/nowhere/vmlinux")).unwrap_err().to_string();
    assert!(missing.contains("cannot read the kernel `/nowhere/vmlinux`"), "{missing}");
}

#[test]
fn truncated_kernels_are_refused_with_both_lengths() {
    let error = load_bytes(&elf(|file| file.truncate(0x1700))).unwrap_err();
    assert!(error.contains("5888 bytes of 6144"), "{error}");
    let mut short = bzimage(|_| {});
    short.truncate(1024 + 0xf00);
    let error = load_bytes(&short).unwrap_err();
    assert!(error.contains("is truncated: 4864 bytes"), "{error}");
}

#[test]
fn kernels_that_do_not_fit_are_refused() {
    let expect = |bytes: &[u8]| {
        let error = load_bytes(bytes).unwrap_err();
        assert!(error.contains("needs memory from"), "{error}");
    };
    expect(&elf(|file| file[64 + 40..64 + 48].copy_from_slice(&MEMORY_END.to_le_bytes())));
    expect(&bzimage(|header| header.init_size = u32::MAX));
    expect(&bzimage(|header| header.pref_address = u64::MAX));
    expect(&bzimage(|header| header.code32_start = 0x1000));
    expect(&bzimage(|header| header.code32_start = u32::MAX));
}
