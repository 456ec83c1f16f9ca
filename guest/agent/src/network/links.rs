//! The network interfaces that the kernel has, and the order in which they get their names.

use std::fs;
use std::path::Path;

use bellows_protocol::values::InterfaceName;

use crate::error::{AgentError, Result};
use crate::files;

/// Where the kernel lists the interfaces of the agent's network namespace.
pub const FOLDER: &str = "/sys/class/net";

/// A network interface of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number, which stays.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; `None` where it has none of six bytes.
    pub hardware_address: Option<[u8; 6]>,
}

impl Link {
    /// All that are in `folder`. One that goes away meanwhile is left out.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn all(folder: &Path) -> Result<Vec<Self>> {
        let entries = fs::read_dir(folder).map_err(AgentError::path("read", folder))?.flatten();
        let read = |path: &Path, name: String| -> Result<Self> {
            let index = files::read(path.join("ifindex"))?;
            let malformed = || AgentError::Malformed { what: format!("ifindex of {name}"), text: index.clone() };
            let hardware_address = hardware_address(&files::read(path.join("address"))?);
            Ok(Self { index: index.parse().map_err(|_| malformed())?, name, hardware_address })
        };
        let links = entries.filter_map(|entry| {
            let link = read(&entry.path(), entry.file_name().into_string().ok()?);
            match link {
                Err(AgentError::Path { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
                link => Some(link),
            }
        });
        links.collect()
    }
}

fn hardware_address(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

/// What an interface is to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewName {
    /// A name that nobody asks for, until later.
    Aside,
    /// The name that is wanted.
    Wanted(InterfaceName),
    /// One that the kernel chooses, for an interface that had a name that another wants.
    Any,
}

impl NewName {
    /// It as the kernel takes it. `%d` is the lowest number that is free.
    pub fn text(&self) -> &str {
        match self {
            Self::Aside => "aside%d",
            Self::Wanted(name) => name.as_str(),
            Self::Any => "eth%d",
        }
    }
}

/// The steps, by the interfaces' numbers, that give `wanted` their names. Those whose names are wanted step aside first, for they may
/// want each other's.
pub fn renaming(links: &[Link], wanted: &[(u32, InterfaceName)]) -> Vec<(u32, NewName)> {
    let is_wanted = |name: &str| wanted.iter().any(|(_, wanted)| wanted.as_str() == name);
    let wish = |link: &Link| wanted.iter().find(|(index, _)| *index == link.index).map(|(_, name)| name);
    let wrong = |link: &&Link| match wish(link) {
        Some(name) => link.name != name.as_str(),
        None => is_wanted(&link.name),
    };
    let wrong: Vec<&Link> = links.iter().filter(wrong).collect();
    let aside = wrong.iter().filter(|link| is_wanted(&link.name)).map(|link| (link.index, NewName::Aside));
    let named = wrong.iter().filter_map(|link| wish(link).map(|name| (link.index, NewName::Wanted(name.clone()))));
    let others = wrong.iter().filter(|link| wish(link).is_none()).map(|link| (link.index, NewName::Any));
    aside.chain(named).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(names: &[&str]) -> Vec<Link> {
        let link = |(index, name): (u32, &&str)| Link { index, name: name.to_string(), hardware_address: None };
        (1..).zip(names).map(link).collect()
    }

    /// Carries the steps out as the kernel does; returns the names by number.
    fn renamed(names: &[&str], wanted: &[(u32, &str)]) -> (usize, Vec<String>) {
        let mut links = links(names);
        let wanted: Vec<_> = wanted.iter().map(|(index, name)| (*index, name.parse().unwrap())).collect();
        let steps = renaming(&links, &wanted);
        let count = steps.len();
        for (index, name) in steps {
            let taken = |name: &str| links.iter().any(|link| link.name == name);
            let name = match name.text().strip_suffix("%d") {
                Some(start) => (0..).map(|number| format!("{start}{number}")).find(|name| !taken(name)).unwrap(),
                None => name.text().to_owned(),
            };
            assert!(!taken(&name), "{name} is taken");
            links[index as usize - 1].name = name;
        }
        (count, links.into_iter().map(|link| link.name).collect())
    }

    #[test]
    fn interfaces_get_their_names_whoever_has_them() {
        assert_eq!(renamed(&["lo", "eth0"], &[(2, "eth0")]), (0, vec!["lo".into(), "eth0".into()]));
        assert_eq!(renamed(&["lo", "eth0"], &[(2, "net0")]).1, ["lo", "net0"]);
        assert_eq!(renamed(&["lo", "eth0", "eth1"], &[(2, "eth1"), (3, "eth0")]).1, ["lo", "eth1", "eth0"]);
        assert_eq!(renamed(&["lo", "eth0", "eth1"], &[(3, "eth0")]).1, ["lo", "eth1", "eth0"]);
        assert_eq!(renamed(&["lo", "a", "b", "c"], &[(2, "b"), (3, "c"), (4, "a")]).1, ["lo", "b", "c", "a"]);
        assert_eq!(renamed(&["lo", "a", "b"], &[]).0, 0);
    }

    #[test]
    fn interfaces_are_read_as_sysfs_shows_them() {
        let folder = tempfile::tempdir().unwrap();
        for (name, index, address) in
            [("eth0", "2\n", "02:00:00:00:00:0a\n"), ("lo", "1\n", "00:00:00:00:00:00\n"), ("tun0", "3\n", "\n")]
        {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("ifindex"), index).unwrap();
            fs::write(folder.path().join(name).join("address"), address).unwrap();
        }
        fs::create_dir(folder.path().join("gone")).unwrap();
        let mut links = Link::all(folder.path()).unwrap();
        links.sort_by_key(|link| link.index);
        let found: Vec<_> = links.iter().map(|link| (&*link.name, link.hardware_address)).collect();
        assert_eq!(found, [("lo", Some([0; 6])), ("eth0", Some([2, 0, 0, 0, 0, 10])), ("tun0", None)]);
    }
}
