//! Where updates run, as a choice on the command line.

use clap::ValueEnum;
use optimizers::Backend;

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Place {
    Cpu,
    Gpu,
    /// The GPU if there is a hardware one, else the CPU.
    Auto,
}

impl Place {
    pub(crate) fn backend(self) -> Backend {
        match self {
            Self::Cpu => Backend::Cpu,
            Self::Gpu => Backend::Gpu,
            Self::Auto => Backend::auto(),
        }
    }
}
