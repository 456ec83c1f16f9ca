//! Guest-physical layout, partitions, host mappings and discard.
