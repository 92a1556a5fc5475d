//! The binary: verbs of the command line, and the assembly of the parts. Everything else is in the crates below.

#![forbid(unsafe_code)]

mod access;
mod cluster;
mod connector;
mod down;
mod image;
mod log;
mod paths;
mod traces;
mod up;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// A container platform in one binary.
#[derive(Parser)]
#[command(name = "sampan", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the whole platform in the foreground: API, controllers, scheduler and this machine as a node.
    Up(UpArgs),
    /// End the platform of these directories with its pods, and remove everything it left on the machine.
    Down(DownArgs),
    /// Images of this machine.
    Image(ImageArgs),
}

/// Directories of a cluster on this machine.
#[derive(Args, Clone)]
struct Directories {
    /// What must survive a restart of the machine: objects, keys, images, logs.
    #[arg(long, global = true, default_value = "/var/lib/sampan", value_name = "DIR")]
    data_dir: PathBuf,
    /// What ends with the machine's uptime: sockets, process records, secrets of pods.
    #[arg(long, global = true, default_value = "/run/sampan", value_name = "DIR")]
    run_dir: PathBuf,
}

#[derive(Args, Clone)]
struct UpArgs {
    #[command(flatten)]
    directories: Directories,
    /// Address and port of the API.
    #[arg(long, default_value = "0.0.0.0:6443", value_name = "ADDRESS:PORT")]
    bind: SocketAddr,
    /// Where the administrator's kubeconfig is written [default: DATA/kubeconfig].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Name of this machine in the cluster [default: the host name].
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Addresses of pods, for example 10.42.0.0/16 [default: the first range no route of this machine uses].
    #[arg(long, value_name = "RANGE", requires = "service_cidr")]
    pod_cidr: Option<String>,
    /// Addresses of services, for example 10.43.0.0/16.
    #[arg(long, value_name = "RANGE", requires = "pod_cidr")]
    service_cidr: Option<String>,
    /// Registries that may be spoken to without TLS, for example 127.0.0.1:5000.
    #[arg(long, value_name = "HOST:PORT")]
    plain_http_registry: Vec<String>,
    #[command(flatten)]
    access: access::AccessArgs,
    /// TracingConfiguration (apiserver.config.k8s.io): the collector that is told of requests, by OTLP over HTTP, and how
    /// many of them [default: none, or what OTEL_EXPORTER_OTLP_ENDPOINT and its like say].
    #[arg(long, value_name = "FILE")]
    tracing_config_file: Option<PathBuf>,
    /// What is logged to standard error: error, warn, info, debug, trace, or per part like `info,sampan_node=debug`.
    #[arg(long, default_value = "info", value_name = "FILTER")]
    log: String,
    /// What a line of the log looks like.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    logging_format: log::Format,
}

#[derive(Args)]
struct DownArgs {
    #[command(flatten)]
    directories: Directories,
    /// Remove the data directory as well: objects, keys, images.
    #[arg(long)]
    purge: bool,
}

#[derive(Args)]
struct ImageArgs {
    #[command(flatten)]
    directories: Directories,
    #[command(subcommand)]
    verb: ImageVerb,
}

#[derive(Subcommand)]
enum ImageVerb {
    /// Load an OCI layout or docker archive: a directory, a tar or a tar.gz.
    Load {
        /// The archive.
        file: PathBuf,
    },
    /// Make an image of one layer from a root file system.
    Import(ImportArgs),
    /// Fetch an image from a registry.
    Pull(PullArgs),
    /// List images.
    Ls,
    /// Remove images.
    Rm {
        /// References or ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

#[derive(Args)]
struct ImportArgs {
    /// Archive of the root file system.
    file: PathBuf,
    /// Name of the image.
    reference: String,
    /// Program and first arguments, one per use.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// Default arguments, one per use.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// Environment, NAME=VALUE.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working directory.
    #[arg(long, default_value = "", value_name = "DIR")]
    working_dir: String,
    /// User, `uid[:gid]` or names.
    #[arg(long, default_value = "", value_name = "USER")]
    user: String,
}

#[derive(Args)]
struct PullArgs {
    /// What to fetch, for example `nginx` or `127.0.0.1:5000/app:1`.
    reference: String,
    /// Speak to this registry without TLS.
    #[arg(long)]
    plain_http: bool,
    /// `USER:PASSWORD` for the registry.
    #[arg(long, value_name = "USER:PASSWORD")]
    credentials: Option<String>,
}

/// What went wrong, for the one line at the end.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    // A supervisor is this same binary under another name; it must not even parse a command line.
    if let Some(code) = sampan_runtime::supervisor_main() {
        return code;
    }
    let cli = Cli::parse();
    let (filter, format) = match &cli.verb {
        Verb::Up(args) => (args.log.as_str(), args.logging_format),
        _ => ("warn", log::Format::Text),
    };
    let traces = match &cli.verb {
        Verb::Up(args) => traces::start(args.tracing_config_file.as_deref()),
        _ => Ok(None),
    };
    let (layer, exporter) = match traces {
        Ok(traces) => traces.unzip(),
        Err(error) => {
            eprintln!("error: traces: {}", chain(&*error));
            return ExitCode::from(2);
        }
    };
    if let Err(error) = log::start(filter, format, layer) {
        eprintln!("error: --log {filter}: {error}");
        return ExitCode::from(2);
    }
    let result = match cli.verb {
        Verb::Up(args) => up::main(args, exporter),
        Verb::Down(args) => down::main(&args),
        Verb::Image(args) => image::main(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error with all its causes, each said once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Containers, networks and mounts belong to root.
fn require_root(verb: &str) -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(format!("`sampan {verb}` makes containers and networks and must be run as root").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn causes_are_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: inner")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(chain(&error), "outer: inner");
    }
}
