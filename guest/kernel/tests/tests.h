/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The tests, by the file that they are in; private_nodes.c runs them.
 */
#ifndef TESTS_H
#define TESTS_H

#include "harness.h"

#define FIRST	(&partitions[0])
#define SECOND	(&partitions[1])

/* private_nodes.c */
/* Whether the name is in "NAME,NAME ...", up to a space. */
bool listed(const char *name, const char *list);

/* confinement.c */
void test_hidden(void);
void test_counts(void);
void test_filter_pack(void);
void test_hugetlb(void);
void test_pressure(void);
void test_subjects(void);
void test_remote(void);
void test_tmpfs_from_outside(void);
void test_escape(void);
void test_attach(void);
void test_clone_into_cgroup(void);
void test_pins(void);

/* full.c */
void test_bounded(void);
void test_system_oom(void);
void test_reclaim(void);
void test_full_tmpfs(void);
void test_full_from_outside(void);
void test_unkillable(void);

/* charges.c */
void test_whole_partition(void);
void test_usage(void);
void test_balance(void);
void test_limit_reclaim(void);
void test_cache_to_parent(void);
void test_node_stats(void);

/* base.c */
void test_base_bounded(void);
void test_culprit(void);
void test_culprit_in_cgroup(void);
void test_inode_cost(void);

/* parking.c */
void test_park(void);
void test_batches(void);
void test_parked_blocks(void);
void test_resize(void);
void test_resize_time(void);
void test_live_resize(void);
void test_beside_first_plug(void);
void test_lists(void);
void test_park_time(void);

/* leftovers.c */
void test_pinned_by_pipe(void);
void test_holder(void);
void test_leaked_tmpfs(void);
void test_offline_block(void);
void test_patience(void);
void test_lingerers(void);
void test_leftover_refused(void);
void test_remove_parked(void);

/* devices.c */
void test_content(void);
void test_stock(void);
void test_unbind(void);
void test_fickle_host(void);
void test_aborted(void);

/* features.c */
void test_swap(void);
void test_merge(void);
void test_balancing(void);
void test_kcore(void);
void test_hibernation(void);
void test_memory_failure(void);
void test_damon(void);

/* adoption.c */
void test_adoption(void);
void test_adoption_refused(void);
void test_adopted_pins(void);

#endif
