//! What a caller may put on the kernel command line.

use super::{ConfigError, VmConfig, error};
use crate::command_line::CommandLine;

/// Longest command line of a caller: what every kernel takes (`COMMAND_LINE_SIZE`, 2048 less the final zero) less the
/// monitor's own parameters.
const MAX_COMMAND_LINE: usize = 1536;

pub(super) fn check(config: &VmConfig) -> Result<(), ConfigError> {
    let line = config.command_line.as_deref().unwrap_or_default();
    if CommandLine::new().text(line).is_err() {
        let expected = "printable ASCII with quotes in pairs";
        return Err(error("command_line", format!("{line:?}"), expected));
    }
    for (index, parameter) in config.extra_command_line.iter().enumerate() {
        if parameter.is_empty() || !parameter.bytes().all(|byte| byte.is_ascii_graphic()) {
            let expected = "one parameter of printable ASCII without spaces, such as `name=value`";
            return Err(error(format!("extra_command_line[{index}]"), format!("{parameter:?}"), expected));
        }
    }
    let extra: usize = config.extra_command_line.iter().map(|parameter| parameter.len() + 1).sum();
    if line.len() + extra > MAX_COMMAND_LINE {
        let field = if line.len() > extra { "command_line" } else { "extra_command_line" };
        let expected = format!("at most {MAX_COMMAND_LINE} bytes");
        return Err(error(field, format!("{} bytes", line.len() + extra), expected));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bellows_memory::ByteSize;

    use super::*;

    #[test]
    fn a_line_of_the_callers_is_checked_with_the_parameters_after_it() {
        let mut config = VmConfig::new("vmlinux", ByteSize::mib(128));
        config.command_line = Some("console=ttyS0 x=\"a b\" -- one".into());
        config.validate().unwrap();
        for line in ["a\nb", "x=\"open", "ä"] {
            config.command_line = Some(line.into());
            let error = config.validate().unwrap_err();
            assert_eq!((&*error.field, error.expected.contains("ASCII")), ("command_line", true), "{error}");
        }
        config.command_line = Some("x".repeat(MAX_COMMAND_LINE));
        config.validate().unwrap();
        config.extra_command_line = vec!["y".into()];
        let error = config.validate().unwrap_err();
        assert_eq!((&*error.field, &*error.value), ("command_line", "1538 bytes"));
    }
}
