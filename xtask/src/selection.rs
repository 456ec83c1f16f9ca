//! Which of the tests that need KVM run when.

/// End-to-end tests of every run: one at least for each thing that a user does, and for each border that holds a guest. The others
/// take an hour, and are for `cargo xtask stress`.
const EACH_RUN: [&str; 48] = [
    "api::a_vm_lives_under_firecrackers_name_and_requests",
    "api_instances::an_instance_lives_under_requests_and_gives_its_partition_back",
    "api_instances::instances_that_come_and_go_at_once_leave_nothing",
    "balloon::memory_that_an_instance_has_freed_goes_back_by_itself",
    "base_memory::the_report_names_the_limit",
    "boot::debians_kernel_runs_an_instance_in_a_partition_and_gives_it_back",
    "clients::the_go_sdk_takes_a_vm_through_its_life",
    "cni::a_command_is_in_a_network_of_cni_until_it_ends",
    "command::a_commands_output_and_exit_code_come_through",
    "console::the_error_of_a_run_has_the_last_lines_of_a_kernel_that_dies",
    "detached::a_command_that_has_ended_is_kept_until_it_is_removed_unless_told_otherwise",
    "detached::a_further_command_has_streams_and_a_terminal",
    "detached::a_vm_in_the_background_finds_folders_and_its_partition_grows_and_shrinks",
    "detached::a_vm_in_the_background_is_listed_talked_to_and_stopped",
    "detached::files_are_copied_into_an_instance_and_out_of_it",
    "disks::a_disk_comes_and_goes_while_layers_are_read",
    "elastic::page_cache_brings_base_memory_in_and_it_goes_back",
    "extension::a_container_can_not_leave_its_partition",
    "extension::a_greedy_instance_is_killed_and_its_neighbour_is_not",
    "extension::an_instances_memory_is_in_its_partition_and_leaves_it_parked",
    "freeze::a_frozen_instance_is_removed_and_nothing_of_it_stays",
    "jail::a_jailed_vm_boots_by_requests",
    "layers::a_container_can_not_change_an_image_in_memory",
    "layers::a_layer_that_is_cut_short_is_an_io_error_to_the_guest",
    "layers::images_come_and_go",
    "metadata::metadata_that_requests_set_is_read_with_a_token",
    "network::a_guest_has_interfaces_for_as_long_as_their_taps_are_there",
    "network::an_instance_and_its_host_talk",
    "network::much_data_comes_as_it_was_sent",
    "network_hotplug::an_interface_comes_and_goes_under_load",
    "network_load::a_guest_that_floods_harms_nobody_and_survives_its_tap",
    "network_own::an_instance_sends_only_where_it_may",
    "network_own::instances_have_networks_of_their_own",
    "network_vhost::a_partition_leaves_while_packets_come_out_of_it",
    "partitions::a_killed_instance_gives_all_back_while_its_neighbour_runs",
    "partitions::an_instance_starts_as_its_partition_is_plugged",
    "passt::a_command_reaches_out_and_is_reached",
    "passt::a_published_port_leads_to_a_detached_vm",
    "pause::a_paused_vm_answers_with_a_conflict_and_goes_on",
    "prepared::the_first_plug_of_a_prepared_partition_is_that_of_a_parked_one",
    "programs::a_second_interrupt_ends_the_run_at_once",
    "programs::signals_reach_the_program",
    "scratch::an_instance_writes_more_than_its_memory_and_nothing_of_it_stays",
    "sealed::layers_are_sealed_where_the_file_system_can",
    "streams::the_command_passes_input_on",
    "warm::the_command_records_once_and_reads_ahead_then",
    "zygotes::a_zygote_and_its_forks_cannot_leave_their_partitions",
    "zygotes::forks_are_instances_in_partitions_of_their_own",
];

/// Begins the names of tests that last as long as they are told to.
const BY_CHANCE: &str = "stress::";

/// A selection of tests.
#[derive(Debug, Clone, Copy)]
pub enum Selection<'a> {
    /// Those of every run.
    EachRun,
    /// The other end-to-end tests.
    Others,
    /// Those that last as long as they are told to.
    ByChance,
    /// Those whose names contain one of these.
    Named(&'a [String]),
}

impl Selection<'_> {
    /// Whether it has a test. Tests outside of any module are short, and run each time.
    pub fn has(self, name: &str) -> bool {
        let is_each = !name.contains("::") || EACH_RUN.contains(&name);
        match self {
            Self::EachRun => is_each,
            Self::Others => !is_each && !name.starts_with(BY_CHANCE),
            Self::ByChance => name.starts_with(BY_CHANCE),
            Self::Named(parts) => parts.iter().any(|part| name.contains(part.as_str())),
        }
    }

    /// Whether an ordinary user runs its tests, and each monitor has filters, also those in the tests' process. In `cargo xtask stress`,
    /// the superuser runs them.
    pub const fn is_confined(self) -> bool {
        match self {
            Self::EachRun | Self::Named(_) => true,
            Self::Others | Self::ByChance => false,
        }
    }

    /// Tests that it needs and that are not among `names`.
    pub fn missing(self, names: &[&str]) -> Vec<&'static str> {
        match self {
            Self::EachRun => EACH_RUN.into_iter().filter(|wanted| !names.contains(wanted)).collect(),
            Self::Others | Self::ByChance | Self::Named(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_is_in_one_selection() {
        for name in EACH_RUN.into_iter().chain(["a_guest_stops", "stress::all", "stress::more", "layers::some_other"]) {
            let selections = [Selection::EachRun, Selection::Others, Selection::ByChance];
            assert_eq!(selections.into_iter().filter(|selection| selection.has(name)).count(), 1, "{name}");
        }
    }

    #[test]
    fn tests_are_named_by_a_part() {
        let parts = ["layers::".to_owned(), "stress::".to_owned()];
        let named = Selection::Named(&parts);
        assert!(named.has("layers::images_come_and_go") && named.has("stress::all") && !named.has("boot::layers"));
    }

    #[test]
    fn a_test_that_is_gone_is_missed() {
        let mut names = EACH_RUN.to_vec();
        assert!(Selection::EachRun.missing(&names).is_empty());
        let gone = names.remove(3);
        assert_eq!(Selection::EachRun.missing(&names), [gone]);
        assert!(Selection::Others.missing(&[]).is_empty());
    }
}
