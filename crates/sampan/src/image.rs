//! `sampan image`: the image store of this machine, with or without a running platform.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use sampan_image::{Image, ImageStore, ImportConfig, LayerState, PullOptions, PullProgress};

use crate::paths::Paths;
use crate::{Failure, ImageArgs, ImageVerb, ImportArgs, PullArgs};

/// Runs the verb.
pub(crate) fn main(args: ImageArgs) -> Result<(), Failure> {
    crate::require_root("image")?;
    let images = ImageStore::open(&Paths::new(&args.directories).images())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match args.verb {
            ImageVerb::Load { file } => {
                images.load(&file).await?.iter().for_each(|image| say("loaded", image))
            }
            ImageVerb::Import(args) => say("imported", &import(&images, args).await?),
            ImageVerb::Pull(args) => say("pulled", &pull(&images, args).await?),
            ImageVerb::Ls => list(&images.list()?),
            ImageVerb::Rm { images: names } => {
                for name in names {
                    let removed = images.remove(&name)?;
                    removed.untagged.iter().for_each(|reference| println!("untagged {reference}"));
                    removed.deleted.iter().for_each(|id| println!("deleted {id}"));
                }
            }
        }
        Ok(())
    })
}

fn say(what: &str, image: &Image) {
    let name = image.references.first().unwrap_or(&image.id);
    println!("{what} {name}");
}

async fn import(images: &ImageStore, args: ImportArgs) -> Result<Image, Failure> {
    let config = ImportConfig {
        entrypoint: args.entrypoint,
        cmd: args.cmd,
        env: args.env,
        working_dir: args.working_dir,
        user: args.user,
        exposed_ports: Vec::new(),
    };
    Ok(images.import(&args.file, &args.reference, config).await?)
}

async fn pull(images: &ImageStore, args: PullArgs) -> Result<Image, Failure> {
    let credentials = match &args.credentials {
        None => None,
        Some(pair) => {
            let (user, password) = pair.split_once(':').ok_or("--credentials must be USER:PASSWORD")?;
            Some((user.to_owned(), password.to_owned()))
        }
    };
    let plain_http_hosts = if args.plain_http {
        let host = args.reference.split('/').next().unwrap_or_default();
        vec![host.to_owned()]
    } else {
        Vec::new()
    };
    let options = PullOptions { plain_http_hosts, credentials, ca: None };
    let bars = Arc::new(Bars::default());
    let progress = bars.clone();
    Ok(images.pull(&args.reference, options, Arc::new(move |p| progress.show(&p))).await?)
}

/// One bar per layer; nothing at all where no terminal is.
#[derive(Default)]
struct Bars {
    screen: MultiProgress,
    layers: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn show(&self, progress: &PullProgress) {
        let layer = progress.layer.to_string();
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = layers.entry(layer.clone()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix} {msg:11} {bar:30} {bytes}/{total_bytes}");
            let bar = self.screen.add(ProgressBar::new(progress.total));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(layer.trim_start_matches("sha256:").chars().take(12).collect::<String>());
            bar
        });
        match progress.state {
            LayerState::Waiting => bar.set_message("waiting"),
            LayerState::Downloading(bytes) => {
                bar.set_message("downloading");
                bar.set_position(bytes);
            }
            LayerState::Unpacking => {
                bar.set_message("unpacking");
                bar.set_position(progress.total);
            }
            LayerState::Done => {
                bar.set_position(progress.total);
                bar.finish_with_message("done");
            }
        }
    }
}

fn list(images: &[Image]) {
    println!("{:<50} {:<14} {:>10}", "REFERENCE", "ID", "SIZE");
    for image in images {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
        let names =
            if image.references.is_empty() { vec!["<none>".to_owned()] } else { image.references.clone() };
        for name in names {
            println!("{name:<50} {id:<14} {:>10}", human_size(image.size));
        }
    }
}

/// Bytes with one decimal in the largest fitting unit.
fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["B", "kB", "MB", "GB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes}B") } else { format!("{value:.1}{}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(
            [0, 999, 1500, 2_000_000, 7_300_000_000].map(human_size),
            ["0B", "999B", "1.5kB", "2.0MB", "7.3GB"]
        );
    }
}
