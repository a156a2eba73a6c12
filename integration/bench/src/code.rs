//! Bytes of machine code of the engine's functions, from the symbols of the program that runs.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use object::{Object, ObjectSymbol, SymbolKind};

use crate::results::Code;

/// Paths of the table engine and of the loops that its functions are inlined into.
const WANTED: [&str; 2] = ["hv_iommu::table", "hv_bench::engine::Engine"];
/// What is on no path that counts: how errors are shown.
const SHOWN: &str = "core::fmt";
/// Smaller functions are left out.
const LEAST: u64 = 256;

/// The engine's functions in this program, largest first.
///
/// # Errors
/// When the program's file cannot be read.
pub fn sizes() -> Result<Vec<Code>> {
    let file = std::env::current_exe().context("where is this program?")?;
    let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    let object = object::File::parse(&*bytes).context("this program is no object file")?;
    let functions = object
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
        .filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.size())));
    Ok(gather(functions))
}

fn gather(functions: impl Iterator<Item = (String, u64)>) -> Vec<Code> {
    let mut found: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for (symbol, bytes) in functions {
        let name = format!("{:#}", rustc_demangle::demangle(&symbol));
        let plain = without_generics(&name);
        let wanted = WANTED.iter().any(|wanted| plain.starts_with(wanted));
        if wanted && bytes >= LEAST && !plain.contains(SHOWN) {
            let entry = found.entry(plain).or_default();
            entry.0 += 1;
            entry.1 = entry.1.max(bytes);
        }
    }
    let mut codes: Vec<Code> = found
        .into_iter()
        .map(|(name, (copies, bytes))| Code {
            name,
            copies,
            bytes,
        })
        .collect();
    codes.sort_by(|one, other| other.bytes.cmp(&one.bytes).then(one.name.cmp(&other.name)));
    codes
}

/// A path without what stands between angle brackets: generic arguments and the types of `impl` blocks.
fn without_generics(name: &str) -> String {
    // `<impl a::B<C>>::f` and `<a::B<C>>::f` are `a::B::f`.
    let name = name
        .strip_prefix('<')
        .map_or(name, |rest| rest.strip_prefix("impl ").unwrap_or(rest));
    let mut plain = String::new();
    let mut depth = 0_i32;
    for letter in name.chars() {
        match letter {
            '<' => depth += 1,
            '>' => depth -= 1,
            letter if depth <= 0 => plain.push(letter),
            _ => {}
        }
    }
    while plain.contains("::::") {
        plain = plain.replace("::::", "::");
    }
    plain.trim_end_matches(':').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_generic_arguments() {
        let plain = |name| without_generics(name);
        assert_eq!(
            plain("hv_iommu::table::map::<impl hv_iommu::table::Table<F,H>>::map_range"),
            "hv_iommu::table::map::map_range"
        );
        assert_eq!(
            plain("<hv_iommu::table::Table<A, B<C>>>::map"),
            "hv_iommu::table::Table::map"
        );
        assert_eq!(plain("a::f::<u8>"), "a::f");
    }

    #[test]
    fn copies_are_counted_and_the_largest_is_kept() {
        let symbols = [
            ("_ZN8hv_iommu5table3map9map_range17h0123456789abcdefE", 270),
            ("_ZN8hv_iommu5table3map9map_range17hfedcba9876543210E", 300),
            ("_ZN5other1f17h0123456789abcdefE", 900),
            ("_ZN8hv_iommu5table4walk4open17h0123456789abcdefE", 100),
        ];
        let codes = gather(
            symbols
                .map(|(name, bytes)| (name.to_owned(), bytes))
                .into_iter(),
        );
        assert_eq!(codes.len(), 1);
        assert_eq!(
            (codes[0].name.as_str(), codes[0].copies, codes[0].bytes),
            ("hv_iommu::table::map::map_range", 2, 300)
        );
    }
}
