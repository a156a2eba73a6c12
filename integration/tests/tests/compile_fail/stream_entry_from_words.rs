//! A stream table entry is made from what it is to mean: words, such as those of a second stage of AArch32 tables, make
//! none.
//! Instead: `StreamTableEntry::second_stage(&tables, &options)` and its neighbours.
use hv_smmu::spec::stream_entry::StreamTableEntry;

fn mistake(words: [u64; 8]) -> StreamTableEntry {
    StreamTableEntry(words)
}

fn main() {}
// Shows: bc04.
