//! The instance of a run: its streams, and the signals that reach it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use bellows_vmm::{ExitStatus, Forwarding, InstanceError, InstanceSpec, Stdio, StreamName, Vm};
use nix::sys::signal::Signal;

use crate::cli::RunArgs;
use crate::error::{CliError, io_error};
use crate::exit::Failure;
use crate::interrupt::Interrupts;
use crate::output::{Lenient, Watched};
use crate::terminal::{Raw, Resizes};

/// Starts the instance, passes everything on until it ends, and removes it.
pub(super) fn run_instance(
    vm: &Vm,
    spec: &InstanceSpec,
    args: &RunArgs,
    interrupts: &Interrupts,
    resizes: Option<Resizes>,
) -> Result<ExitStatus, CliError> {
    let instance = Arc::new(vm.start_instance(spec)?);
    let signal = {
        let instance = instance.clone();
        move |signal: Signal| {
            // It may have ended already.
            if let Err(error) = instance.signal(signal as u32) {
                tracing::debug!(%error, %signal, "cannot pass on a signal");
            }
        }
    };
    let passing = interrupts.pass_on(args.stop_timeout, signal.clone());
    let init = instance.init();
    let output: Box<dyn Write + Send> = match args.json {
        true => Box::new(Lenient(io::stderr())),
        // It would otherwise wait for a reader that is gone.
        false => Box::new(Watched::new(io::stdout(), move || signal(Signal::SIGKILL))),
    };
    let (outputs, fed) = match spec.process.stdio {
        Stdio::Terminal(_) => {
            let terminal = init.connect(StreamName::Terminal)?;
            let outputs = vec![terminal.forward(output)?];
            (outputs, args.interactive.then_some(terminal))
        }
        Stdio::Pipes { stdin } => {
            let stdout = instance.forward(StreamName::Stdout, output)?;
            let stderr = instance.forward(StreamName::Stderr, Lenient(io::stderr()))?;
            (vec![stdout, stderr], stdin.then(|| init.connect(StreamName::Stdin)).transpose()?)
        }
    };
    let raw = (args.tty && args.interactive).then(Raw::enter).transpose()?;
    if let Some(resizes) = resizes {
        let init = init.clone();
        resizes.follow(move |size| init.resize(size))?;
    }
    let input = match fed {
        Some(stream) => {
            let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(io_error("read", "standard input"))?;
            Some(stream.feed(File::from(stdin))?)
        }
        None => None,
    };
    let mut status = instance.wait()?;
    // Its other processes ended with the first one, so nothing holds the output open.
    for output in outputs {
        match output.join() {
            Err(InstanceError::PassOn { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
                status.code = Failure::ClosedOutput.exit_code(true);
            }
            result => drop(result?),
        }
    }
    drop(raw);
    // Otherwise it waits for output without a reader.
    if let Some(input) = input.filter(Forwarding::is_finished) {
        input.join()?;
    }
    instance.remove(args.guest.timeout)?;
    drop(passing);
    Ok(status)
}
