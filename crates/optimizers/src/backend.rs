//! The run-time choice.

use optim_core::{IntoBackend, Result};

/// Where updates run: given to [`Builder::build`](crate::Builder::build).
///
/// There is no silent fallback: a choice that cannot be had is an error. Which device was found is told by
/// [`Optimizer::backend`](crate::Optimizer::backend).
#[derive(Debug, Default)]
pub enum Backend {
    /// The host's processor, with rayon's global pool. For a pool of your own pass a `CpuBackend`.
    #[default]
    Cpu,
    /// The GPU that wgpu prefers, with a device of its own. For your own device, or to create buffers, pass a `GpuBackend`.
    Gpu,
    /// A backend of your own.
    Custom(Box<dyn optim_core::Backend>),
}

impl Backend {
    /// [`Gpu`](Self::Gpu) if there is a hardware GPU that works, else [`Cpu`](Self::Cpu). A software GPU is not chosen: the
    /// CPU backend is faster. The choice can be read from the returned value. A build without the CPU backend always chooses `Gpu`, a
    /// software one if there is no other.
    ///
    /// Parameters in the host's memory travel to the GPU and back at every step, so this is for training loops whose
    /// parameters and gradients live on the GPU.
    #[must_use]
    pub fn auto() -> Self {
        #[cfg(all(feature = "cpu", feature = "gpu"))]
        let gpu = optim_gpu::GpuBackend::new().is_ok_and(|gpu| !gpu.is_software());
        // What is not built is not chosen, so that the error is of the device that is missing.
        #[cfg(not(all(feature = "cpu", feature = "gpu")))]
        let gpu = cfg!(feature = "gpu");
        if gpu { Self::Gpu } else { Self::Cpu }
    }
}

impl IntoBackend for Backend {
    fn into_backend(self) -> Result<Box<dyn optim_core::Backend>> {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu => Ok(Box::new(optim_cpu::CpuBackend::new())),
            #[cfg(not(feature = "cpu"))]
            Self::Cpu => Err(optim_core::Error::BackendNotBuilt { backend: "cpu", feature: "cpu" }),
            #[cfg(feature = "gpu")]
            Self::Gpu => Ok(Box::new(optim_gpu::GpuBackend::new()?)),
            #[cfg(not(feature = "gpu"))]
            Self::Gpu => Err(optim_core::Error::BackendNotBuilt { backend: "gpu", feature: "gpu" }),
            Self::Custom(backend) => Ok(backend),
        }
    }
}
