//! Puts load on a server and says what became of it.
//!
//! ```text
//! cargo run --release -p zamba-serve --example load -- burst --zamba target/release/zamba --model DIR --json
//! ```
//!
//! It starts `zamba serve` on a free port of this machine, or asks a server that is there already (`--url`). It speaks to
//! the loopback interface alone, and never holds more connections than it was told to.

mod args;
mod ask;
mod bodies;
mod burst;
mod disconnects;
mod http;
mod numbers;
mod overhead;
mod server;
mod slow;
mod soak;
mod streams;
mod turns;

use clap::Parser;
use serde_json::Value;

use args::{Args, Load};

/// Success, or a sentence that says what is wrong.
pub(crate) type Result<T = ()> = std::result::Result<T, String>;

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no runtime: {error}")),
    };
    match runtime.block_on(run(&args)) {
        Ok(found) => {
            print(&found, args.common.json);
            let mut wrong: Vec<&str> = MUST_NOT.into_iter().filter(|name| happened(&found[*name])).collect();
            wrong.extend(MUST.into_iter().filter(|name| found[*name] == false));
            if wrong.is_empty() {
                return std::process::ExitCode::SUCCESS;
            }
            fail(&format!("not as promised: {}", wrong.join(", ")))
        }
        Err(why) => fail(&why),
    }
}

/// Figures of any load that are 0 or false where the server does what it promises.
const MUST_NOT: [&str; 6] = [
    "other_answers_that_differ",
    "tokens_computed_for_nobody",
    "failed",
    "grew_too_much",
    "wrong",
    "refusals_without_an_error_object",
];

/// Those that are true.
const MUST: [&str; 2] = ["same_answer_alone_and_among_others", "idle_afterwards"];

fn happened(figure: &Value) -> bool {
    figure.as_bool().unwrap_or_default() || figure.as_f64().is_some_and(|count| count != 0.0)
}

fn fail(why: &str) -> std::process::ExitCode {
    eprintln!("load: {why}");
    std::process::ExitCode::FAILURE
}

async fn run(args: &Args) -> Result<Value> {
    let server = server::Server::find(&args.common).await?;
    let found = match &args.load {
        Load::Burst(load) => burst::run(&server, load).await,
        Load::Disconnects(load) => disconnects::run(&server, load).await,
        Load::Soak(load) => soak::run(&server, load).await,
        Load::Streams(load) => streams::run(&server, load).await,
        Load::Slow(load) => slow::run(&server, load).await,
        Load::Turns(load) => turns::run(&server, load).await,
        Load::Overhead(load) => overhead::run(&server, &args.common, load).await,
        Load::Bodies(load) => bodies::run(&server, load).await,
    };
    let stopped = server.stop().await;
    let mut found = found?;
    stopped?;
    found["load"] = args.load.name().into();
    Ok(found)
}

/// One document, or a line for each figure.
fn print(found: &Value, json: bool) {
    if json {
        println!("{found}");
        return;
    }
    for (name, value) in found.as_object().into_iter().flatten() {
        println!("{name:>34}  {value}");
    }
}
