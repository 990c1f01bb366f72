//! Sockets: who may ask, how much, and for how long.
