//! Symbols by their addresses.

/// The functions of a kernel or a program.
#[derive(Debug, Default)]
pub struct Symbols(Vec<Symbol>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Symbol {
    address: u64,
    /// Where it ends, if that is known; otherwise the next one begins there.
    end: Option<u64>,
    name: String,
    /// What it is part of.
    part: String,
}

/// What kernels' symbols are part of, where they are not a module's.
const KERNEL: &str = "vmlinux";

impl Symbols {
    /// Of lines as `/proc/kallsyms` and `System.map` have them: address, kind, name, and a module in brackets.
    pub fn parse(text: &str) -> Self {
        let symbol = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let is_function = matches!(words.next()?, "t" | "T" | "w" | "W");
            let name = words.next()?.to_owned();
            is_function.then(|| Symbol { address, end: None, name, part: words.next().unwrap_or(KERNEL).to_owned() })
        };
        Self::new(text.lines().filter_map(symbol).collect())
    }

    /// Of a program: address, size (0 where it is not known) and name. Between them lie functions that a stripped program does
    /// not name.
    pub fn of_program(symbols: impl Iterator<Item = (u64, u64, String)>) -> Self {
        let symbol = |(address, size, name): (u64, u64, String)| {
            let end = (size > 0).then(|| address.saturating_add(size));
            Symbol { address, end, name, part: String::new() }
        };
        Self::new(symbols.map(symbol).collect())
    }

    fn new(mut symbols: Vec<Symbol>) -> Self {
        symbols.sort();
        // Names of one function: the first stands for all.
        symbols.dedup_by_key(|symbol| symbol.address);
        Self(symbols)
    }

    /// The function that `address` lies in: what it is part of, and its name.
    pub fn find(&self, address: u64) -> Option<(&str, &str)> {
        let after = self.0.partition_point(|symbol| symbol.address <= address);
        let symbol = self.0.get(after.checked_sub(1)?)?;
        symbol.end.is_none_or(|end| address < end).then_some((&symbol.part, &symbol.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_function_that_it_lies_in() {
        let symbols = Symbols::parse(
            "ffffffff81000200 T second\nffffffff81000000 T first\nffffffff81000000 t alias_of_it\nffffffff81000100 D data\n\
             ffffffffc0000000 t vmrun\t[kvm_amd]\nnonsense\n",
        );
        let find = |address| symbols.find(address);
        assert_eq!(find(0xffff_ffff_8100_0000), Some(("vmlinux", "alias_of_it")));
        assert_eq!(find(0xffff_ffff_8100_01ff), Some(("vmlinux", "alias_of_it")));
        assert_eq!(find(0xffff_ffff_8100_0200), Some(("vmlinux", "second")));
        assert_eq!(find(0xffff_ffff_c000_0010), Some(("[kvm_amd]", "vmrun")));
        assert_eq!(find(0x1000), None);
    }

    #[test]
    fn what_a_stripped_program_does_not_name_has_no_symbol() {
        let symbols = [(0x1000, 0x20, "exported".to_owned()), (0x2000, 0, "assembly".to_owned())];
        let symbols = Symbols::of_program(symbols.into_iter());
        let name = |address| symbols.find(address).map(|(_, name)| name);
        assert_eq!([name(0x101f), name(0x1020), name(0x2fff)], [Some("exported"), None, Some("assembly")]);
    }
}
