//! Prints the GPU that the library finds, or why it finds none (exit code 1).

use std::process::ExitCode;

use optim_core::Backend;
use optim_gpu::GpuBackend;

fn main() -> ExitCode {
    match GpuBackend::new() {
        Ok(gpu) => {
            println!("{}", gpu.describe());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
