//! Finds the file that a page of code is of, by what is in the page.
//!
//! Nobody in the lab has to say what its guests' programs are and where: their code is the same in memory as in their files.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use bellows_lab::sample::{PAGE, fingerprint};
use object::{Object, ObjectSegment, ObjectSymbol, SegmentFlags, SymbolKind};

use crate::error::{Error, Result};
use crate::image;

use super::samples::Place;
use super::symbols::Symbols;

/// Pages of programs and libraries.
#[derive(Debug, Default)]
pub struct Code {
    files: Vec<(String, Symbols)>,
    /// By fingerprint: the file, and the address of the page as its symbols count addresses.
    pages: HashMap<u64, (usize, u64)>,
}

impl Code {
    /// Adds a program or library. Where pages are known already, the earlier file stays.
    pub fn add_file(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.add(&name, &fs::read(path).map_err(Error::at(path))?);
        Ok(())
    }

    /// Adds all programs and libraries of the image layout at `root`.
    pub fn add_image(&mut self, root: &Path) -> Result<()> {
        for layer in image::layers::unpacked(root)? {
            let mut archive = tar::Archive::new(&*layer);
            for entry in archive.entries().map_err(Error::at(root))? {
                let mut entry = entry.map_err(Error::at(root))?;
                let path = entry.path().map_err(Error::at(root))?.into_owned();
                let mut data = Vec::new();
                entry.read_to_end(&mut data).map_err(Error::at(root))?;
                self.add(&path.file_name().unwrap_or_default().to_string_lossy(), &data);
            }
        }
        Ok(())
    }

    /// The file of a place and the symbol in it.
    pub fn find(&self, place: &Place) -> Option<(&str, &str)> {
        let (file, page) = self.pages.get(&place.page)?;
        let (name, symbols) = self.files.get(*file)?;
        let symbol = symbols.find(page + place.address % PAGE as u64).map_or("[no symbol]", |(_, symbol)| symbol);
        Some((name, symbol))
    }

    /// Files that are not ELF have no code.
    fn add(&mut self, name: &str, data: &[u8]) {
        let Ok(file) = object::File::parse(data) else { return };
        for (fingerprint, page) in pages(&file, data) {
            self.pages.entry(fingerprint).or_insert((self.files.len(), page));
        }
        let symbols = file.symbols().chain(file.dynamic_symbols());
        let functions = symbols.filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition());
        let named =
            functions.filter_map(|symbol| Some((symbol.address(), symbol.size(), symbol.name().ok()?.to_owned())));
        self.files.push((name.to_owned(), Symbols::of_program(named)));
    }
}

/// The pages of a program that are executable: fingerprint, and address of the first byte.
fn pages(file: &object::File<'_>, data: &[u8]) -> Vec<(u64, u64)> {
    let is_code = |flags| matches!(flags, SegmentFlags::Elf { p_flags } if p_flags & object::elf::PF_X != 0);
    let mut pages = Vec::new();
    for segment in file.segments().filter(|segment| is_code(segment.flags())) {
        let (offset, size) = segment.file_range();
        let first = offset - offset % PAGE as u64;
        let address = segment.address().wrapping_sub(offset - first);
        for at in (first..offset.saturating_add(size)).step_by(PAGE) {
            let Some(page) = usize::try_from(at).ok().and_then(|at| data.get(at..)) else { break };
            pages.push((fingerprint(&page[..page.len().min(PAGE)]), address.wrapping_add(at - first)));
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::super::samples::World;
    use super::*;

    /// A function whose address is known, in a program whose file is at hand: this test.
    #[inline(never)]
    extern "C" fn landmark() -> u64 {
        std::hint::black_box(42)
    }

    #[test]
    fn a_page_in_memory_is_found_in_the_file_it_is_of() {
        assert_eq!(landmark(), 42);
        let mut code = Code::default();
        code.add_file(&std::env::current_exe().unwrap()).unwrap();
        let address = landmark as *const () as u64;
        let page = page_of_this_process(address);
        let place = Place { world: World::HostUser, address, page: fingerprint(&page) };
        let (_, symbol) = code.find(&place).unwrap();
        assert!(symbol.contains("landmark"), "{symbol}");
        assert_eq!(code.find(&Place { page: 1, ..place }), None);
    }

    fn page_of_this_process(address: u64) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut page = vec![0; PAGE];
        let memory = fs::File::open("/proc/self/mem").unwrap();
        memory.read_exact_at(&mut page, address - address % PAGE as u64).unwrap();
        page
    }
}
