//! The guest of a host's trial: a few instructions, and the addresses that they use.

/// Memory that is taken away from it, and comes back.
pub(crate) const WINDOW: u64 = 0x400_0000;
/// Where its doorbell is first, and then.
pub(crate) const BELLS: [u64; 2] = [0x800_0000, 0x900_0000];
/// What it reads: the window; the same without memory; again as a string, two words; the window once it is back.
pub(crate) const RESULTS: u64 = 0x180_0000;
/// The byte that it counts its steps in. It waits until the next one has the same number.
pub(crate) const STEP: u64 = RESULTS + 0x40;
/// Where its code lies.
pub(crate) const ENTRY: u64 = 0x100_0000;

/// The code.
#[rustfmt::skip]
pub(crate) const CODE: &[u8] = &[
    0xbf, 0, 0, 0, 4,                         // mov edi, WINDOW
    0xbe, 0, 0, 0x80, 1,                      // mov esi, RESULTS
    0x48, 0x8b, 0x07,                         // mov rax, [rdi]
    0x48, 0x89, 0x06,                         // mov [rsi], rax
    0xc6, 0x46, 0x40, 1,                      // mov byte [rsi + 0x40], 1
    0x80, 0x7e, 0x41, 1, 0x75, 0xfa,          // wait: cmp byte [rsi + 0x41], 1; jne wait
    0x48, 0x8b, 0x07,                         // mov rax, [rdi]
    0x48, 0x89, 0x46, 0x08,                   // mov [rsi + 8], rax
    0x48, 0xc7, 0x07, 0x44, 0x33, 0x22, 0x11, // mov qword [rdi], 0x11223344
    0x48, 0x89, 0xf3,                         // mov rbx, rsi
    0x48, 0x89, 0xfe,                         // mov rsi, rdi
    0x48, 0x8d, 0x7b, 0x10,                   // lea rdi, [rbx + 0x10]
    0xb9, 2, 0, 0, 0,                         // mov ecx, 2
    0xf3, 0x48, 0xa5,                         // rep movsq
    0x48, 0x89, 0xde,                         // mov rsi, rbx
    0xbf, 0, 0, 0, 4,                         // mov edi, WINDOW
    0xba, 0, 0, 0, 8,                         // mov edx, BELLS[0]
    0x66, 0xc7, 0x02, 7, 0,                   // mov word [rdx], 7
    0xc6, 0x46, 0x40, 2,                      // mov byte [rsi + 0x40], 2
    0x80, 0x7e, 0x41, 2, 0x75, 0xfa,          // wait: cmp byte [rsi + 0x41], 2; jne wait
    0xba, 0, 0, 0, 9,                         // mov edx, BELLS[1]
    0x66, 0xc7, 0x02, 8, 0,                   // mov word [rdx], 8
    0x48, 0x8b, 0x07,                         // mov rax, [rdi]
    0x48, 0x89, 0x46, 0x20,                   // mov [rsi + 0x20], rax
    0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, // mov dx, 0x600; mov al, 0x34; out dx, al: switches itself off
    0xeb, 0xfe,                               // again: jmp again
];

/// Writes and reads of [`CODE`] that find no memory.
pub(crate) const UNCLAIMED: (u64, u64) = (1, 3);

/// An ELF kernel that consists of [`CODE`].
pub(crate) fn kernel() -> Vec<u8> {
    let mut file = vec![0; 64];
    let set = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        file.splice(at..at + bytes.len(), bytes.iter().copied());
    };
    // For 64 bits, little-endian; an executable for x86-64 with one segment, whose header follows.
    set(&mut file, 0, b"\x7fELF\x02\x01");
    for (at, value) in [(16, 2), (18, 62), (20, 1), (32, 64), (52, 64), (54, 56), (56, 1)] {
        set(&mut file, at, &[value]);
    }
    set(&mut file, 24, &ENTRY.to_le_bytes());
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0x1000, ENTRY, ENTRY, CODE.len() as u64, CODE.len() as u64, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.resize(0x1000, 0);
    file.extend(CODE);
    file
}
