//! `zamba`: prepare text, train, evaluate, run and publish Zamba hybrids.
//!
//! This crate is thin: flags, progress, printing. A command is one file under [`cmd`]; each holds what may be
//! typed (`Args`), and turns it into what is meant before anything expensive begins.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage. An error is one line on stderr.

mod bench;
mod cmd;
mod common;
mod cost;
mod demo;
mod error;
mod file;
mod hash;
mod html;
mod interrupt;
mod log;
mod out;
mod progress;
mod system;
mod text;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Prepare text, train, evaluate, run and publish Zamba SSM-attention hybrids.
#[derive(Debug, Parser)]
#[command(name = "zamba", version, disable_help_subcommand = true, subcommand_required = true)]
#[command(
    after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage. `zamba COMMAND --help` shows an example."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Init(cmd::init::Args),
    Info(cmd::info::Args),
    Generate(cmd::generate::Args),
    Chat(cmd::chat::Args),
    Score(cmd::score::Args),
    Bench(cmd::bench::Args),
    Convert(cmd::convert::Args),
    Quantize(cmd::quantize::Args),
    Train(cmd::train::Args),
    Data(cmd::data::Args),
    Eval(cmd::eval::Args),
    Serve(Box<cmd::serve::Args>),
}

fn main() -> ExitCode {
    error::catch_panics(|| {
        let cli = match Cli::try_parse() {
            Ok(cli) => cli,
            Err(e) => return error::usage(&e),
        };
        match interrupt::install().and_then(|()| run(cli.command)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => error::report(&e),
        }
    })
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Init(args) => cmd::init::run(&args),
        Command::Info(args) => cmd::info::run(&args),
        Command::Generate(args) => cmd::generate::run(&args),
        Command::Chat(args) => cmd::chat::run(&args),
        Command::Score(args) => cmd::score::run(&args),
        Command::Bench(args) => cmd::bench::run(&args),
        Command::Convert(args) => cmd::convert::run(&args),
        Command::Quantize(args) => cmd::quantize::run(&args),
        Command::Train(args) => cmd::train::run(&args),
        Command::Data(args) => cmd::data::run(&args),
        Command::Eval(args) => cmd::eval::run(&args),
        Command::Serve(args) => cmd::serve::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Every command that can be run, by its full name.
    fn leaves(command: &clap::Command, name: &str) -> Vec<(String, clap::Command)> {
        let subcommands: Vec<_> = command.get_subcommands().collect();
        if subcommands.is_empty() {
            return vec![(name.to_owned(), command.clone())];
        }
        subcommands.iter().flat_map(|c| leaves(c, &format!("{name} {}", c.get_name()))).collect()
    }

    #[test]
    fn flags_do_not_clash() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example_that_it_accepts() {
        for (name, command) in leaves(&Cli::command(), "zamba") {
            let help =
                command.get_after_help().unwrap_or_else(|| panic!("{name} has no example")).to_string();
            let examples: Vec<_> = help.lines().map(str::trim).filter(|l| l.starts_with(&name)).collect();
            assert!(!examples.is_empty(), "{name} has no example: {help}");
            for example in examples {
                let words = example.split_whitespace().map(|w| w.trim_matches('"'));
                assert!(Cli::try_parse_from(words).is_ok(), "{example}");
            }
        }
    }
}
