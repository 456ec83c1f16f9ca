//! The versioned protocol between the monitor and the guest agent.
