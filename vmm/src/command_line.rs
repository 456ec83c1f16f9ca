//! The kernel command line, built from parts (`Documentation/admin-guide/kernel-parameters.rst`).

/// Kernel parameters, in order, then arguments for init.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CommandLine {
    parameters: Vec<String>,
    init_arguments: Vec<String>,
}

/// Why a text cannot be on a command line.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommandLineError {
    /// Not a parameter's name.
    #[error("`{}` is not a parameter name: expected printable ASCII without blanks, quotes or `=`", .0.escape_debug())]
    Name(String),
    /// Not a parameter's value.
    #[error("`{}` is not a value for the kernel parameter `{name}`: expected printable ASCII without quotes", value.escape_debug())]
    Value {
        /// The parameter.
        name: String,
        /// Its value.
        value: String,
    },
    /// Not text for a command line.
    #[error("`{}` cannot be on a kernel command line: expected printable ASCII with quotes in pairs", .0.escape_debug())]
    Text(String),
    /// Longer than the kernel reads.
    #[error("the kernel command line has {bytes} bytes, but this kernel reads at most {max}: `{line}`")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
        /// Bytes that the kernel reads.
        max: usize,
        /// The line.
        line: String,
    },
}

impl CommandLine {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a parameter without a value.
    ///
    /// # Errors
    /// `name` is not a parameter name.
    pub fn flag(&mut self, name: &str) -> Result<&mut Self, CommandLineError> {
        let quiet = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'=';
        // `--` would end the kernel's part.
        if name.is_empty() || name == "--" || !name.bytes().all(quiet) {
            return Err(CommandLineError::Name(name.to_owned()));
        }
        self.parameters.push(name.to_owned());
        Ok(self)
    }

    /// Adds a parameter with a value, quoted where it needs to be.
    ///
    /// # Errors
    /// `name` is not a parameter name, or `value` cannot be a value.
    pub fn set(&mut self, name: &str, value: &str) -> Result<&mut Self, CommandLineError> {
        if !is_printable(value) || value.contains('"') {
            return Err(CommandLineError::Value { name: name.to_owned(), value: value.to_owned() });
        }
        self.flag(name)?;
        let quote = if value.contains(' ') { "\"" } else { "" };
        if let Some(parameter) = self.parameters.last_mut() {
            *parameter = format!("{name}={quote}{value}{quote}");
        }
        Ok(self)
    }

    /// Adds a user's text: parameters and, after ` -- `, arguments for init.
    ///
    /// # Errors
    /// The text has characters that cannot be on a command line.
    pub fn text(&mut self, text: &str) -> Result<&mut Self, CommandLineError> {
        if !is_printable(text) || !text.matches('"').count().is_multiple_of(2) {
            return Err(CommandLineError::Text(text.to_owned()));
        }
        let mut words = words(text).into_iter();
        self.parameters.extend(words.by_ref().take_while(|word| word != "--"));
        self.init_arguments.extend(words);
        Ok(self)
    }

    /// The line, at most `max` bytes long.
    ///
    /// # Errors
    /// It is longer.
    pub fn render(&self, max: usize) -> Result<String, CommandLineError> {
        let mut line = self.parameters.join(" ");
        if !self.init_arguments.is_empty() {
            line = format!("{line} -- {}", self.init_arguments.join(" "));
        }
        if line.len() > max {
            return Err(CommandLineError::TooLong { bytes: line.len(), max, line });
        }
        Ok(line)
    }
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

/// Splits at blanks outside quotes.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in text.chars() {
        quoted ^= character == '"';
        match words.last_mut() {
            Some(word) if character != ' ' || quoted => word.push(character),
            _ => words.push(String::new()),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_a_line() {
        let mut line = CommandLine::new();
        line.flag("quiet").unwrap().set("console", "ttyS0").unwrap().set("dyndbg", "file a.c +p").unwrap();
        line.text(r#"  panic=-1 x="a -- b"  -- one two"#).unwrap().set("swiotlb", "noforce").unwrap();
        let expected = r#"quiet console=ttyS0 dyndbg="file a.c +p" panic=-1 x="a -- b" swiotlb=noforce -- one two"#;
        assert_eq!(line.render(200).unwrap(), expected);
        assert_eq!(CommandLine::new().render(0).unwrap(), "");
    }

    #[test]
    fn parts_that_the_kernel_would_misread_are_refused() {
        let mut line = CommandLine::new();
        for name in ["", "--", "a b", "a=b", "a\"", "ä", "a\n"] {
            assert_eq!(line.flag(name), Err(CommandLineError::Name(name.to_owned())).map(|()| unreachable!()));
            assert!(line.set(name, "x").is_err(), "{name:?}");
        }
        for value in ["a\"b", "a\nb", "\0", "é"] {
            assert!(line.set("name", value).unwrap_err().to_string().contains("`name`"), "{value:?}");
        }
        for text in ["quiet\n", "x=\"open", "\u{7f}"] {
            assert!(matches!(line.text(text), Err(CommandLineError::Text(_))), "{text:?}");
        }
        assert_eq!(line, CommandLine::new(), "refused parts are not added");
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_whole() {
        let mut line = CommandLine::new();
        line.flag("12345").unwrap();
        assert!(line.render(5).is_ok());
        assert!(line.render(4).unwrap_err().to_string().contains("5 bytes, but this kernel reads at most 4"));
    }
}
