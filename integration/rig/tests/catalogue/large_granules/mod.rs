//! Machines with SMMUs whose tables have pages of 16 or 64 KiB.

mod of_16k;
mod of_64k;
