//! Text for people: tables, and sizes in few letters.

/// Rows below a head, in columns.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = [head.map(str::to_owned)].into_iter().chain(rows).collect();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default());
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A size of at most five letters: `0`, `312K`, `1.5M`, `128M`.
pub(super) fn short(bytes: u64) -> String {
    let Some((shift, unit)) =
        [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')].into_iter().find(|(shift, _)| bytes >> shift != 0)
    else {
        return bytes.to_string();
    };
    let (whole, rest) = (bytes >> shift, bytes & ((1 << shift) - 1));
    let tenths = (u128::from(rest) * 10) >> shift;
    if whole < 10 && tenths != 0 { format!("{whole}.{tenths}{unit}") } else { format!("{whole}{unit}") }
}

/// The same where it may not be known.
pub(super) fn short_if_known(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "?".into(), short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_columns() {
        let rows = [["a".to_owned(), "long".to_owned()], ["longer".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "X"], rows.into_iter()), "NAME    X\na       long\nlonger");
    }

    #[test]
    fn a_size_is_short_and_never_rounded_up() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1K"),
            ((1 << 20) - 1, "1023K"),
            (3 << 19, "1.5M"),
            (128 << 20, "128M"),
            ((10 << 30) + (1 << 29), "10G"),
            (u64::MAX, "16777215T"),
        ] {
            assert_eq!(short(bytes), text);
        }
    }
}
