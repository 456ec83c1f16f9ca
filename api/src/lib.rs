//! The bellows command and the REST interface.
