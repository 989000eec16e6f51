//! `berthd simulate`: a model server or GPUs that are not there.

use super::{Failure, one_thread, print, serve::signals};
use crate::simulate::{
    self, SimulateOptions,
    gpu::{self, GpuOptions, Node, OpenError},
};
use std::{io::BufRead, path::Path, thread};
use tokio::sync::mpsc;

/// `berthd simulate`
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    server: SimulateOptions,
    #[command(flatten)]
    gpu: GpuOptions,
}

/// Runs what is to be simulated.
pub fn run(options: Options) -> Result<(), Failure> {
    match (&options.gpu.gpu, &options.gpu.once) {
        (None, _) => server(options.server),
        (Some(folder), Some(command)) => {
            let said = gpu::once(folder, command).map_err(|why| Failure::data(why.to_string()))?;
            print(said.unwrap_or_default().as_bytes())
        }
        (Some(folder), None) => gpus(&options.gpu, folder),
    }
}

fn server(options: SimulateOptions) -> Result<(), Failure> {
    // One thread: what is measured against it should not be slowed by its own wake-ups.
    one_thread()?.block_on(async move {
        let simulator = simulate::bind(options).await.map_err(Failure::internal)?;
        print(format!("simulated model server on http://{}\n", simulator.local_addr()).as_bytes())?;
        let (_hangups, stop) = signals()?;
        simulator.run(stop).await;
        Ok(())
    })
}

fn gpus(options: &GpuOptions, folder: &Path) -> Result<(), Failure> {
    one_thread()?.block_on(async move {
        let node = Node::open(options, folder).await.map_err(|error| match &error {
            OpenError::Running(_) => Failure::unavailable(error.to_string()),
            OpenError::Script(_) => Failure::data(error.to_string()),
            OpenError::Desk(_) | OpenError::Socket { .. } => Failure::internal(error),
        })?;
        print(node.greeting().as_bytes())?;
        let (_hangups, stop) = signals()?;
        // A reader who went away does not end the simulation.
        node.run(typed()?, |text| drop(print(text.as_bytes())), stop).await;
        Ok(())
    })
}

/// Lines from standard input, read by a thread that ends with the process.
fn typed() -> Result<mpsc::Receiver<String>, Failure> {
    let (send, lines) = mpsc::channel(1);
    let read = move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("typed".into()).spawn(read).map_err(Failure::internal)?;
    Ok(lines)
}
