//! VMs that outlive the command that started them: `bellows run --detach`, and the commands that look at them and handle them.
//! Each is a process with an API of its own; these commands are its clients.

mod client;
mod copy;
mod exec;
mod memory;
mod partition;
mod place;
mod start;
mod table;
mod top;

use std::io;

use serde_json::{Value, json};

use self::client::Client;
pub(crate) use self::copy::cp;
pub(crate) use self::exec::exec;
pub(crate) use self::partition::partition;
use self::place::{Place, Seat};
pub(crate) use self::start::{Job, start};
use self::table::table;
pub(crate) use self::top::top;
use crate::error::CliError;
use crate::options::detached::{LogsArgs, PsArgs, RmArgs, StopArgs};
use crate::output::{print, say_plainly};

/// An instance of a VM that runs.
struct Found {
    seat: Seat,
    /// What its VM says of it.
    said: Value,
}

impl Found {
    fn client(&self) -> Client {
        self.seat.client()
    }

    fn id(&self) -> &str {
        self.said["id"].as_str().unwrap_or_default()
    }

    fn path(&self, rest: &str) -> String {
        format!("/instances/{}{rest}", self.id())
    }

    fn state(&self) -> &str {
        self.said["state"].as_str().unwrap_or_default()
    }

    /// The name that the user gives: the VM's where that is the instance's, too.
    fn name(&self) -> String {
        if self.id() == self.seat.name { self.seat.name.clone() } else { format!("{}/{}", self.seat.name, self.id()) }
    }
}

/// `bellows ps`.
pub(crate) fn ps(args: &PsArgs) -> Result<u8, CliError> {
    let all = all()?;
    let shown: Vec<_> = all.iter().filter(|found| args.all || !matches!(found.state(), "Exited" | "Lost")).collect();
    if args.json {
        for found in shown {
            let mut said = found.said.clone();
            said["vm"] = json!(found.seat.name);
            print(&said)?;
        }
        return Ok(0);
    }
    let rows = shown.iter().map(|found| {
        let said = &found.said;
        let image = said["labels"]["image"].as_str().or(said["image"].as_str()).unwrap_or_default();
        let words = said["argv"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut command: String =
            words.collect::<Vec<_>>().join(" ").chars().filter(|c| !c.is_control()).take(30).collect();
        if command.chars().count() == 30 {
            command.push('…');
        }
        let memory = match said["memory_mib"].as_u64() {
            Some(0) | None => "base".to_owned(),
            Some(mib) => format!("{mib}M"),
        };
        let state = match said["ended"]["exit_code"].as_u64() {
            Some(code) => format!("{} ({code})", found.state()),
            None => found.state().to_owned(),
        };
        [found.name(), image.to_owned(), command, state, memory]
    });
    print(table(["NAME", "IMAGE", "COMMAND", "STATE", "MEMORY"], rows))?;
    Ok(0)
}

/// `bellows logs`.
pub(crate) fn logs(args: &LogsArgs) -> Result<u8, CliError> {
    let found = find(&args.name)?;
    found.client().stream(&found.path(if args.follow { "/logs?follow=true" } else { "/logs" }), &mut io::stdout())?;
    Ok(0)
}

/// `bellows stop`: ends instances, and their VMs.
pub(crate) fn stop(args: &StopArgs) -> Result<u8, CliError> {
    for name in &args.names {
        let found = find(name)?;
        if found.state() == "Frozen" {
            found.client().call("PATCH", &found.path(""), Some(&json!({ "state": "Running" })))?;
        }
        if found.state() != "Exited" {
            let limit = args.time.as_millis();
            found.client().call(
                "POST",
                &found.path("/stop"),
                Some(&json!({ "timeout_ms": u64::try_from(limit).unwrap_or(u64::MAX) })),
            )?;
        }
        end(&found)?;
        print(name)?;
    }
    Ok(0)
}

/// `bellows rm`: removes instances that have ended, and their VMs.
pub(crate) fn rm(args: &RmArgs) -> Result<u8, CliError> {
    for name in &args.names {
        let found = find(name)?;
        if !args.force && !matches!(found.state(), "Exited" | "Lost") {
            let message = format!("`{name}` has not ended: expected `bellows stop {name}` before, or --force");
            return Err(CliError::Taken(message));
        }
        end(&found)?;
        print(name)?;
    }
    Ok(0)
}

/// Removes an instance, and ends its VM where it was the last one.
fn end(found: &Found) -> Result<(), CliError> {
    let client = found.client();
    client.call("DELETE", &found.path(""), None)?;
    if client.call("GET", "/instances", None)?.as_array().is_some_and(Vec::is_empty) {
        client.call("PUT", "/actions", Some(&json!({ "action_type": "SendCtrlAltDel" })))?;
        found.seat.await_end();
    }
    Ok(())
}

/// The instance that a name means: of the VM of that name the one with the same name, or `VM/INSTANCE`; else an instance of any VM.
fn find(name: &str) -> Result<Found, CliError> {
    let (vm, instance) = name.split_once('/').map_or((None, name), |(vm, instance)| (Some(vm), instance));
    let mut found: Vec<_> = all()?
        .into_iter()
        .filter(|found| found.id() == instance && vm.is_none_or(|vm| vm == found.seat.name))
        .collect();
    if found.len() > 1 {
        found.retain(|found| found.seat.name == instance);
    }
    found.pop().ok_or_else(|| CliError::NotThere(format!("no instance is called `{name}`: `bellows ps -a` shows all")))
}

/// All instances of the user's VMs, by the names of these.
fn all() -> Result<Vec<Found>, CliError> {
    let mut all = Vec::new();
    for seat in Place::of_user()?.all()? {
        match seat.client().call("GET", "/instances", None) {
            Ok(Value::Array(instances)) => {
                all.extend(instances.into_iter().map(|said| Found { seat: seat.clone(), said }))
            }
            Ok(other) => say_plainly(format_args!("VM {}: unexpected answer {other}", seat.name)),
            // It may be on its way out.
            Err(error) => tracing::debug!(error = error.chain(), vm = seat.name, "a VM does not answer"),
        }
    }
    Ok(all)
}

fn exit_code(ended: &Value) -> u8 {
    ended["exit_code"].as_u64().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_one_byte() {
        assert_eq!([3, 300].map(|code| exit_code(&json!({ "exit_code": code }))), [3, 1]);
        assert_eq!(exit_code(&json!({})), 1);
    }
}
