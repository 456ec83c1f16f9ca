//! The embeddable Bellows microVM monitor.
