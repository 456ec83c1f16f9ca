//! `/proc/<pid>/mountinfo`: the tmpfs of a private node.

/// Device number and mount point of each tmpfs with the option `private_node=<node>`.
pub fn tmpfs_of(text: &str, node: u32) -> impl Iterator<Item = (&str, &str)> {
    let option = format!("private_node={node}");
    text.lines().filter_map(move |line| {
        // `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG...] - KIND SOURCE SUPER-OPTIONS`
        let (mount, file_system) = line.split_once(" - ")?;
        let mut words = file_system.split(' ');
        let is_its = words.next()? == "tmpfs" && words.nth(1)?.split(',').any(|word| word == option);
        let mut words = mount.split(' ').skip(2);
        is_its.then_some((words.next()?, words.nth(1)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_names_the_node_of_a_tmpfs() {
        let text = "30 1 0:25 / /run rw,nosuid shared:2 - tmpfs tmpfs rw,mode=755\n\
                    31 30 0:26 / /run/i/a/s rw,nodev shared:3 - tmpfs scratch rw,size=8k,private_node=1,inode64\n\
                    32 30 0:27 / /run/i/b/s rw,nodev - tmpfs scratch rw,private_node=12\n\
                    33 30 0:28 / /x rw - overlay overlay rw,private_node=1\n\
                    34 30\n";
        assert_eq!(tmpfs_of(text, 1).collect::<Vec<_>>(), [("0:26", "/run/i/a/s")]);
        assert_eq!(tmpfs_of(text, 12).collect::<Vec<_>>(), [("0:27", "/run/i/b/s")]);
        assert_eq!(tmpfs_of(text, 2).count(), 0);
    }
}
