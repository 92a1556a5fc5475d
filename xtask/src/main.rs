//! Chores of developers: `cargo xtask <chore>`.

mod conformance;
mod graph;
mod types_table;

use std::process::ExitCode;

const HELP: &str = "usage: cargo xtask CHORE
  conformance [--check]
                     count what docs/conformance.tsv says, or check that the tests it names exist
  graph [--check]    print the arrows between the crates, or compare them with ARCHITECTURE.md
  types FACTS.json   write crates/api/data/types.tsv from facts extracted from the published OpenAPI document";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["conformance"] => conformance::print(),
        ["conformance", "--check"] => conformance::check(),
        ["graph"] => graph::print(),
        ["graph", "--check"] => graph::check(),
        ["types", facts] => types_table::write(facts),
        _ => Err(HELP.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
