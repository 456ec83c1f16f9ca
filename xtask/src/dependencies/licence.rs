//! SPDX licence expressions (SPDX 2.3, annex D), as far as crates use them: names, `WITH`, `AND`, `OR` and brackets. `/` is an old
//! form of `OR`.

/// Whether `expression` can be met by the licences that `allowed` accepts; `None` if it is not an expression.
pub fn is_met(expression: &str, allowed: &impl Fn(&str) -> bool) -> Option<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (met, rest) = any(&words, allowed)?;
    rest.is_empty().then_some(met)
}

/// Alternatives, of which one suffices; also returns the rest of the text.
fn any<'a>(words: &'a [&'a str], allowed: &impl Fn(&str) -> bool) -> Option<(bool, &'a [&'a str])> {
    let (mut met, mut rest) = all(words, allowed)?;
    while let ["OR", more @ ..] = rest {
        let (next, behind) = all(more, allowed)?;
        (met, rest) = (met || next, behind);
    }
    Some((met, rest))
}

/// Licences that all apply.
fn all<'a>(words: &'a [&'a str], allowed: &impl Fn(&str) -> bool) -> Option<(bool, &'a [&'a str])> {
    let (mut met, mut rest) = one(words, allowed)?;
    while let ["AND", more @ ..] = rest {
        let (next, behind) = one(more, allowed)?;
        (met, rest) = (met && next, behind);
    }
    Some((met, rest))
}

fn one<'a>(words: &'a [&'a str], allowed: &impl Fn(&str) -> bool) -> Option<(bool, &'a [&'a str])> {
    match words {
        ["(", inner @ ..] => match any(inner, allowed)? {
            (met, [")", rest @ ..]) => Some((met, rest)),
            _ => None,
        },
        [")" | "OR" | "AND" | "WITH", ..] | [] => None,
        [name, "WITH", exception, rest @ ..] => Some((allowed(&format!("{name} WITH {exception}")), rest)),
        [name, rest @ ..] => Some((allowed(name), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_by_allowed_licences() {
        let allowed = |name: &str| ["MIT", "ISC", "Unicode-3.0"].contains(&name);
        for (expression, met) in [
            ("MIT", Some(true)),
            ("GPL-3.0", Some(false)),
            ("GPL-3.0 OR MIT", Some(true)),
            ("GPL-3.0/MIT", Some(true)),
            ("GPL-3.0 AND MIT", Some(false)),
            ("GPL-3.0 AND ISC OR MIT", Some(true)),
            ("(MIT OR GPL-3.0) AND Unicode-3.0", Some(true)),
            ("(MIT OR GPL-3.0) AND GPL-2.0", Some(false)),
            ("MIT WITH LLVM-exception", Some(false)),
            ("MIT OR", None),
            ("(MIT", None),
            ("MIT ISC", None),
            ("", None),
        ] {
            assert_eq!(is_met(expression, &allowed), met, "{expression}");
        }
    }
}
