//! The VM that arguments describe.

use bellows_block::{Image, Store};
use bellows_memory::{BLOCK, ByteSize};
use bellows_vmm::{ElasticBaseConfig, ImageConfig, ImageId, VmConfig};

use crate::cli::GuestArgs;
use crate::error::CliError;
use crate::output::say;
use crate::places::Places;
use crate::store;

/// Base memory without an argument.
const BASE: ByteSize = ByteSize::mib(256);

/// A configuration from arguments alone; files that they leave out are looked for in `places`.
pub(crate) fn from_guest_args(args: &GuestArgs, places: &Places) -> Result<VmConfig, CliError> {
    let kernel = args.kernel.clone().map_or_else(|| places.kernel(), Ok)?;
    let mut config = VmConfig::new(kernel, BASE);
    config.initramfs = Some(args.initramfs.clone().map_or_else(|| places.initramfs(), Ok)?);
    apply_guest_args(&mut config, args);
    Ok(config)
}

/// Puts arguments over a configuration.
pub(crate) fn apply_guest_args(config: &mut VmConfig, args: &GuestArgs) {
    if let Some(kernel) = &args.kernel {
        config.kernel.clone_from(kernel);
    }
    if let Some(initramfs) = &args.initramfs {
        config.initramfs = Some(initramfs.clone());
    }
    if let Some(vcpus) = args.vcpus {
        config.vcpus = vcpus;
    }
    if let Some(base) = args.base {
        config.memory = base;
    }
    if let Some(max) = args.base_max {
        config.elastic_base = Some(ElasticBaseConfig::new(rounded_up(max)));
    }
    if let Some(mode) = args.partition_mode {
        config.partition_mode = mode;
    }
    if let Some(prepare) = args.prepare {
        config.prepare = rounded_up(prepare);
    }
    config.memory = whole_blocks("base memory", config.memory);
    config.images = std::mem::take(&mut config.images).into_iter().map(|image| placed(image, args)).collect();
    if config.extra_command_line.is_empty() {
        config.extra_command_line.clone_from(&args.kernel_parameters);
    }
}

/// Rounds any size up to the blocks that memory comes in. A size that cannot be rounded stays as it is, for the configuration's
/// checks to refuse.
pub(crate) fn rounded_up(size: ByteSize) -> ByteSize {
    size.get().checked_next_multiple_of(BLOCK.get()).map_or(size, ByteSize::bytes)
}

/// The same, with a message.
pub(crate) fn whole_blocks(what: &str, wanted: ByteSize) -> ByteSize {
    let rounded = rounded_up(wanted);
    if rounded != wanted {
        say(format_args!("{what} of {wanted} is rounded up to {rounded}"));
    }
    rounded
}

/// An image of the store as an image of a VM, named by its digest.
pub(crate) fn configured(store: &Store, image: &Image, args: &GuestArgs) -> Result<ImageConfig, CliError> {
    let id: ImageId = image.digest.hex().parse()?;
    Ok(placed(store::of_store(store, image, id, args.shape)?, args))
}

/// An image in the shape and over the transport of the arguments.
pub(crate) fn placed(mut image: ImageConfig, args: &GuestArgs) -> ImageConfig {
    image.shape = args.shape.or(image.shape);
    image.transport = args.transport.unwrap_or(image.transport);
    image
}
