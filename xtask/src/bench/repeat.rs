//! Several processes that measured the same, as one: each row as the middle one of them measured it.
//!
//! Where a process's stack, code and heap come to lie decides how they share the caches, and moves the time of a few ns by a
//! quarter, as much in ten thousand rounds as in one. Only another process throws those dice anew.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// The rows as the median process measured each, with the least and the greatest value beside it. What is no row is the first
/// one's, but for the load, which is the greatest.
///
/// # Errors
/// When there are none, or they are not of the same rows.
pub(crate) fn merge(mut results: Vec<Value>) -> Result<Value> {
    ensure!(
        !results.is_empty(),
        "no results to merge: expected at least one process"
    );
    let rows: Vec<Vec<Value>> = results.iter_mut().map(rows_of).collect::<Result<_>>()?;
    let count = rows.first().map_or(0, Vec::len);
    ensure!(
        rows.iter().all(|rows| rows.len() == count),
        "the processes measured different numbers of rows"
    );
    let merged: Vec<Value> = (0..count)
        .map(|at| middle(rows.iter().filter_map(|rows| rows.get(at)).collect()))
        .collect::<Result<_>>()?;
    let load = results
        .iter()
        .filter_map(|one| one.pointer("/machine/load_after")?.as_f64())
        .fold(0.0, f64::max);
    let mut merged_results = results.swap_remove(0);
    set(&mut merged_results, "rows", Value::Array(merged))?;
    if let Some(machine) = merged_results.get_mut("machine") {
        set(machine, "load_after", json!(load))?;
    }
    Ok(merged_results)
}

fn set(object: &mut Value, key: &str, value: Value) -> Result<()> {
    let object = object
        .as_object_mut()
        .context("these are no results of the benchmark: expected an object")?;
    object.insert(key.to_owned(), value);
    Ok(())
}

fn rows_of(results: &mut Value) -> Result<Vec<Value>> {
    let rows = results.get_mut("rows").and_then(Value::as_array_mut);
    rows.map(std::mem::take)
        .context("these are no results of the benchmark: there are no rows")
}

/// What is judged, if the row was measured.
fn value(row: &Value) -> Option<f64> {
    row.get("value")?.as_f64()
}

/// The row with the median value, and how far the values lie apart. Of an even number, the greater of the two.
fn middle(mut same: Vec<&Value>) -> Result<Value> {
    let name = |row: &Value| (row.get("id").cloned(), row.get("part").cloned());
    let first = same.first().map(|row| name(row));
    ensure!(
        same.iter().all(|row| Some(name(row)) == first),
        "the processes measured different rows at the same place: {first:?} in the first"
    );
    let key = |row: &&Value| value(row).unwrap_or(f64::INFINITY);
    same.sort_by(|one, other| key(one).total_cmp(&key(other)));
    let mut row = same
        .get(same.len() / 2)
        .map(|row| (*row).clone())
        .context("no process measured the row")?;
    let values: Vec<f64> = same.iter().filter_map(|row| value(row)).collect();
    if let (Some(least), Some(most)) = (values.first(), values.last())
        && values.len() > 1
    {
        set(&mut row, "spread", json!([least, most]))?;
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(load: f64, rows: &[(&str, Option<f64>)]) -> Value {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(id, value)| json!({"id": id, "part": "", "value": value}))
            .collect();
        json!({"layout": 1, "machine": {"load_after": load}, "rows": rows})
    }

    #[test]
    fn each_row_is_the_median_processs() {
        let of = |load, one, other| results(load, &[("B-1", Some(one)), ("B-2", other)]);
        let merged = merge(vec![
            of(0.5, 1.6, None),
            of(1.5, 1.4, None),
            of(1.0, 1.5, None),
        ]);
        let merged = merged.unwrap();
        assert_eq!(merged["rows"][0]["value"], 1.5);
        assert_eq!(merged["rows"][0]["spread"], json!([1.4, 1.6]));
        assert!(merged["rows"][1]["value"].is_null() && merged["rows"][1]["spread"].is_null());
        assert_eq!(merged["machine"]["load_after"], 1.5);
        // Of two, the worse one of what is better when it is lower.
        let two = merge(vec![of(0.0, 2.0, None), of(0.0, 3.0, None)]).unwrap();
        assert_eq!(two["rows"][0]["value"], 3.0);
        let alone = merge(vec![of(0.0, 2.0, None)]).unwrap();
        assert!(alone["rows"][0]["spread"].is_null());
    }

    #[test]
    fn results_of_different_rows_are_refused() {
        let one = results(0.0, &[("B-1", Some(1.0))]);
        let other = results(0.0, &[("B-2", Some(1.0))]);
        let error = merge(vec![one.clone(), other]).unwrap_err().to_string();
        assert!(error.contains("different rows"), "{error}");
        let error = merge(vec![one, results(0.0, &[])]).unwrap_err().to_string();
        assert!(error.contains("different numbers"), "{error}");
        assert!(merge(vec![]).is_err() && merge(vec![json!([])]).is_err());
    }
}
