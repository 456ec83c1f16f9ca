//! Images: their disks, and the shape in which the guest mounts them.
//!
//! The disks of an image exist before the abilities of the guest's kernel are known. If it cannot mount a flat image, and the
//! configuration does not demand one, the layers are attached later, as disks of the running VM.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bellows_block::{Prefetch, ReadSet, StoredFile};
use bellows_disk::DiskError;
use bellows_protocol::values::{ImageId, MAX_LAYERS};

use super::disks::{DiskChange, Disks, Opened, serial_of};
use super::error::{FLAT_KERNEL, HotplugError, ImageError};
use super::table::{Change, Hotplug};
use crate::config::{FlatConfig, ImageConfig, LayerConfig, Shape};
use crate::descriptors;
use crate::guest::agent::AgentClient;
use crate::guest::session::Session;
use crate::model::{DiskInfo, DiskState, ImageInfo};
use crate::virtio_bus::VirtioBus;

/// All images of a VM, by name.
#[derive(Default)]
pub(crate) struct Images(Hotplug<ImageId, Entry>);

/// The right to change a VM's images.
type ImageChange<'a> = Change<'a, ImageId, Entry>;

/// The means to change images: the turn to change them, and the turn to change their disks. Always taken in this order.
struct Work<'a> {
    images: ImageChange<'a>,
    change: DiskChange<'a>,
    session: &'a Session,
    bus: &'a VirtioBus,
    disks: &'a Disks,
    timeout: Duration,
}

impl Images {
    /// Puts the disks of images on the bus, before the guest boots.
    pub(crate) fn add_all(&self, bus: &VirtioBus, disks: &Disks, images: &[ImageConfig]) -> Result<(), HotplugError> {
        let (table, change) = (self.0.change(), disks.change());
        for config in images {
            let shape = config.first_shape();
            let serials = place(config, shape, bus, disks, &change, DiskState::Attached)?;
            table.insert(config.id.clone(), Entry::new(config, shape, serials));
        }
        Ok(())
    }

    /// Makes an image of the configuration ready for instances. It is flat if the guest's kernel can mount that, unless the
    /// configuration says otherwise. `timeout` is for its disks.
    pub(crate) fn mount(
        &self,
        session: &Session,
        bus: &VirtioBus,
        disks: &Disks,
        id: &ImageId,
        timeout: Duration,
    ) -> Result<ImageInfo, ImageError> {
        let work = self.work(session, bus, disks, timeout);
        let entry = self.0.get(id).ok_or_else(|| ImageError::Unknown(id.clone()))?;
        let shape = shape(&entry.config, &session.guest()?.kernel_release)?;
        let entry = if shape == entry.shape { entry } else { work.reshape(&self.0, entry, shape)? };
        work.mount(entry)
    }

    /// Adds an image, and makes it ready for instances.
    pub(crate) fn attach(
        &self,
        session: &Session,
        bus: &VirtioBus,
        disks: &Disks,
        config: &ImageConfig,
        timeout: Duration,
    ) -> Result<ImageInfo, ImageError> {
        config.check("image")?;
        let work = self.work(session, bus, disks, timeout);
        if self.0.contains(&config.id) {
            return Err(ImageError::Exists(config.id.clone()));
        }
        let shape = shape(config, &session.guest()?.kernel_release)?;
        let serials = work.place_and_bind(config, shape)?;
        let entry = Entry::new(config, shape, serials);
        work.images.insert(config.id.clone(), entry.clone());
        work.mount(entry)
    }

    /// Takes an image out of the VM, with the disks that belong to no other image.
    pub(crate) fn detach(
        &self,
        session: &Session,
        bus: &VirtioBus,
        disks: &Disks,
        id: &ImageId,
        timeout: Duration,
    ) -> Result<(), ImageError> {
        let work = self.work(session, bus, disks, timeout);
        let entry = self.0.get(id).ok_or_else(|| ImageError::Unknown(id.clone()))?;
        let serials = remove(&work.images, session.agent()?, entry)?;
        work.detach_unused(&self.0, serials)
    }

    /// All images, by name.
    pub(crate) fn infos(&self) -> Vec<ImageInfo> {
        self.0.map(|entry| entry.clone().into())
    }

    /// The files of all layers, each once, by digest.
    pub(crate) fn layers(&self) -> Vec<LayerConfig> {
        let stacks = self.0.map(|entry| entry.config.stack().cloned().collect::<Vec<_>>());
        let by_digest: BTreeMap<_, _> = stacks.into_iter().flatten().map(|layer| (layer.digest, layer)).collect();
        by_digest.into_values().collect()
    }

    /// The pages of an image's files that the guest has read by now.
    pub(crate) fn profile(&self, disks: &Disks, id: &ImageId) -> Result<ReadSet, ImageError> {
        let entry = self.0.get(id).ok_or_else(|| ImageError::Unknown(id.clone()))?;
        if !disks.record_reads {
            return Err(ImageError::NotRecorded(id.clone()));
        }
        let mut profile = ReadSet::default();
        for serial in &entry.disks {
            let touched = disks.touched(serial);
            profile.extend(touched.map_err(|source| ImageError::Touched { image: id.clone(), source })?);
        }
        Ok(profile)
    }

    fn work<'a>(&'a self, session: &'a Session, bus: &'a VirtioBus, disks: &'a Disks, timeout: Duration) -> Work<'a> {
        Work { images: self.0.change(), change: disks.change(), session, bus, disks, timeout }
    }
}

impl Work<'_> {
    /// Replaces the disks of an image by those of another shape.
    fn reshape(&self, table: &Hotplug<ImageId, Entry>, mut entry: Entry, shape: Shape) -> Result<Entry, ImageError> {
        tracing::info!(image = %entry.config.id, %shape, "the guest's kernel needs another shape");
        let serials = self.place_and_bind(&entry.config, shape)?;
        let old = std::mem::replace(&mut entry.disks, serials);
        entry.shape = shape;
        self.images.insert(entry.config.id.clone(), entry.clone());
        self.detach_unused(table, old)?;
        Ok(entry)
    }

    fn place_and_bind(&self, config: &ImageConfig, shape: Shape) -> Result<Vec<String>, ImageError> {
        let agent = self.session.agent()?;
        descriptors::check_attach(descriptors::of_image(config, shape)).map_err(HotplugError::from)?;
        let serials = place(config, shape, self.bus, self.disks, &self.change, DiskState::Unbound)?;
        // An earlier attempt that took too long may have left some.
        let disks = serials.iter().filter_map(|serial| self.disks.find(serial));
        let unbound: Vec<_> = disks.filter(|disk| disk.state == DiskState::Unbound).collect();
        self.disks.bind(&self.change, agent, &unbound, self.timeout)?;
        Ok(serials)
    }

    fn detach_unused(&self, table: &Hotplug<ImageId, Entry>, serials: Vec<String>) -> Result<(), ImageError> {
        for serial in serials {
            let used = table.map(|entry| entry.disks.contains(&serial)).contains(&true);
            if !used {
                self.disks.detach(&self.change, self.session, self.bus, &serial, self.timeout)?;
            }
        }
        Ok(())
    }

    fn mount(&self, entry: Entry) -> Result<ImageInfo, ImageError> {
        let disk = |serial: &String| self.disks.find(serial).ok_or_else(|| HotplugError::NoDisk(serial.clone()));
        let disks = entry.disks.iter().map(disk).collect::<Result<Vec<_>, _>>()?;
        Ok(mount(&self.images, self.session.agent()?, entry, &disks)?.into())
    }
}

/// The shape of an image in a guest with this kernel.
fn shape(config: &ImageConfig, kernel: &str) -> Result<Shape, ImageError> {
    let layers = config.stack().count();
    match (config.first_shape(), can_mount_flat(kernel)) {
        (Shape::Flat, false) if config.shape.is_some() || layers > MAX_LAYERS => {
            Err(ImageError::Flat { image: config.id.clone(), kernel: kernel.into(), layers })
        }
        (Shape::Flat, false) => Ok(Shape::Layers),
        (shape, _) => Ok(shape),
    }
}

/// Has the guest mount an image, the layers of which are `disks`.
fn mount(
    images: &ImageChange<'_>,
    agent: &AgentClient,
    mut entry: Entry,
    disks: &[DiskInfo],
) -> Result<Entry, ImageError> {
    let id = entry.config.id.clone();
    // The agent may mount it and still not answer in time.
    entry.mount = entry.mount.max(Mount::Maybe);
    images.insert(id.clone(), entry.clone());
    let layers: Vec<_> = disks.iter().map(|disk| (disk.serial.as_str(), disk.address)).collect();
    let failed = |source| ImageError::Agent { action: "mount", image: id.clone(), source };
    agent.mount_image(id.as_str(), &layers).map_err(failed)?;
    entry.mount = Mount::Done;
    images.insert(id, entry.clone());
    Ok(entry)
}

/// Removes an image, also from the guest if it may be mounted there; returns the serial numbers of its disks.
fn remove(images: &ImageChange<'_>, agent: &AgentClient, entry: Entry) -> Result<Vec<String>, ImageError> {
    let id = &entry.config.id;
    if entry.mount != Mount::Unasked {
        let failed = |source| ImageError::Agent { action: "unmount", image: id.clone(), source };
        agent.unmount_image(id.as_str(), entry.disks.len()).map_err(failed)?;
    }
    images.remove(id);
    Ok(entry.disks)
}

/// Puts those disks of an image on the bus that are not there yet; returns the serial numbers of all its disks. On an error
/// the bus is unchanged. Layers of the same digest and transport are one disk, whichever store they come from.
fn place(
    config: &ImageConfig,
    shape: Shape,
    bus: &VirtioBus,
    disks: &Disks,
    change: &DiskChange<'_>,
    state: DiskState,
) -> Result<Vec<String>, HotplugError> {
    let (mut serials, mut added) = (Vec::new(), Vec::new());
    let transport = config.transport;
    let mut add = |serial: String, open: &dyn Fn() -> Result<Opened, DiskError>| {
        if disks.find(&serial).is_none() {
            added.push(disks.add(change, bus, open()?, state)?);
        }
        serials.push(serial);
        Ok(())
    };
    let result = match (shape, config.flat_image()) {
        (Shape::Flat, Some(flat)) => {
            add(serial_of(&flat.digest, transport), &|| Opened::flat(&flat, transport, disks.record_reads))
        }
        _ => {
            let open = |layer| Opened::layer(layer, transport, disks.record_reads);
            config.stack().try_for_each(|layer| add(serial_of(&layer.digest, transport), &|| open(layer)))
        }
    };
    match result {
        Ok(()) => Ok(serials),
        Err(error) => {
            for disk in added {
                if let Err(error) = disks.remove(change, bus, &disk) {
                    tracing::error!(disk = disk.serial, %error, "a disk of an image that failed stays on the bus");
                }
            }
            Err(error)
        }
    }
}

#[derive(Clone)]
pub(crate) struct Entry {
    config: ImageConfig,
    shape: Shape,
    /// Serial numbers of its disks.
    disks: Vec<String>,
    mount: Mount,
    /// Reads ahead for as long as the VM has the image.
    _prefetch: Option<Arc<Prefetch>>,
}

/// The state of an image in the guest.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Mount {
    /// The agent was not asked to mount it.
    Unasked,
    /// The agent was asked, but did not confirm that it is mounted.
    Maybe,
    /// Instances can run it.
    Done,
}

impl Entry {
    /// An image whose disks are on the bus. Starts to read its profile ahead.
    fn new(config: &ImageConfig, shape: Shape, disks: Vec<String>) -> Self {
        let prefetch = config.profile.as_ref().and_then(|profile| {
            let started = Prefetch::start(files(config, shape), profile.clone());
            started.inspect_err(|error| tracing::warn!(image = %config.id, %error, "nothing is read ahead")).ok()
        });
        Self { config: config.clone(), shape, disks, mount: Mount::Unasked, _prefetch: prefetch.map(Arc::new) }
    }
}

/// The files of an image in this shape, in the order in which the guest begins to read them.
fn files(config: &ImageConfig, shape: Shape) -> Vec<StoredFile> {
    match shape {
        Shape::Flat => {
            let metadata =
                |flat: &FlatConfig| StoredFile { digest: flat.digest, path: flat.path.clone(), bytes: flat.bytes };
            config.flat.iter().map(metadata).chain(config.layers.iter().map(StoredFile::from)).collect()
        }
        Shape::Layers => config.stack().map(StoredFile::from).collect(),
    }
}

impl From<Entry> for ImageInfo {
    fn from(entry: Entry) -> Self {
        let transport = entry.config.transport;
        let prefetched = entry.config.profile.as_ref().map_or(0, ReadSet::bytes);
        Self {
            id: entry.config.id,
            shape: entry.shape,
            transport,
            disks: entry.disks,
            mounted: entry.mount == Mount::Done,
            prefetched,
        }
    }
}

/// Whether a kernel of this release mounts flat images; a release that cannot be read counts as too old.
fn can_mount_flat(release: &str) -> bool {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= FLAT_KERNEL,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::PathBuf;
    use std::sync::Mutex;

    use bellows_devices::pci::PciAddress;
    use bellows_protocol::agent::{Empty, MountImageRequest, UnmountImageRequest};
    use bellows_protocol::agent_ttrpc::Agent;
    use ttrpc::{Code, TtrpcContext};

    use super::*;
    use crate::config::Transport;
    use crate::guest::agent::fixture::Fixture;

    /// An agent that fails to mount some images.
    #[derive(Default)]
    struct Slow {
        mounted: Mutex<HashSet<String>>,
        limits: Mutex<Vec<Duration>>,
    }

    fn refusal(code: Code) -> ttrpc::Result<Empty> {
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "")))
    }

    impl Slow {
        fn asked(&self, context: &TtrpcContext) {
            self.limits.lock().unwrap().push(Duration::from_nanos(context.timeout_nano.unsigned_abs()));
        }
    }

    impl Agent for Slow {
        fn mount_image(&self, context: &TtrpcContext, request: MountImageRequest) -> ttrpc::Result<Empty> {
            self.asked(context);
            let answer = match request.image_id.as_str() {
                "never" => return refusal(Code::DEADLINE_EXCEEDED),
                "late" => refusal(Code::DEADLINE_EXCEEDED),
                _ => Ok(Empty::new()),
            };
            self.mounted.lock().unwrap().insert(request.image_id);
            answer
        }

        fn unmount_image(&self, context: &TtrpcContext, request: UnmountImageRequest) -> ttrpc::Result<Empty> {
            self.asked(context);
            let removed = self.mounted.lock().unwrap().remove(&request.image_id);
            if removed { Ok(Empty::new()) } else { refusal(Code::NOT_FOUND) }
        }
    }

    fn add(images: &ImageChange<'_>, id: &str, layers: u8) -> (Entry, Vec<DiskInfo>) {
        let disk = |number: u8| DiskInfo {
            serial: number.to_string(),
            path: PathBuf::new(),
            read_only: true,
            transport: Transport::Blk,
            address: PciAddress::new(0, number, 0).unwrap(),
            state: DiskState::Attached,
            limits: Default::default(),
        };
        let disks: Vec<_> = (1..=layers).map(disk).collect();
        let config = ImageConfig::new(id.parse().unwrap(), [] as [&StoredFile; 0]);
        let entry = Entry::new(&config, Shape::Layers, disks.iter().map(|disk| disk.serial.clone()).collect());
        images.insert(entry.config.id.clone(), entry.clone());
        (entry, disks)
    }

    #[test]
    fn an_image_that_may_be_mounted_is_unmounted() {
        let fake = Arc::new(Slow::default());
        let fixture = Fixture::with_agent(fake.clone());
        let agent = fixture.connect().unwrap();
        let images = Images::default();
        let change = images.0.change();
        for (id, answered) in [("prompt", true), ("late", false), ("never", false)] {
            let (entry, disks) = add(&change, id, 20);
            let id = entry.config.id.clone();
            assert_eq!(mount(&change, &agent, entry, &disks).is_ok(), answered, "{id}");
            assert_eq!(ImageInfo::from(images.0.get(&id).unwrap()).mounted, answered, "{id}");
            assert_eq!(remove(&change, &agent, images.0.get(&id).unwrap()).unwrap().len(), disks.len(), "{id}");
            assert!(!images.0.contains(&id) && fake.mounted.lock().unwrap().is_empty(), "{id}");
        }
        let (entry, _) = add(&change, "unasked", 1);
        remove(&change, &agent, entry).unwrap();
        let limits = fake.limits.lock().unwrap();
        assert_eq!(limits.len(), 6, "the agent is not asked to unmount an image that it never mounted");
        assert!(limits.iter().all(|limit| *limit > Duration::from_secs(20 * 10)), "{limits:?}");
    }

    #[test]
    fn flat_images_need_a_kernel_that_finds_their_layers() {
        for release in ["6.4.0", "6.4-rc1", "6.12.48-bellows", "7.0", "6.12.90+deb13.1-cloud-amd64", "10.1"] {
            assert!(can_mount_flat(release), "{release}");
        }
        for release in ["6.3.13", "6.1.0-18-amd64", "5.16.0", "4.19", "", "6", "six.four", "6.99999999999999"] {
            assert!(!can_mount_flat(release), "{release}");
        }
    }

    #[test]
    fn an_error_names_an_old_kernel() {
        let error =
            |layers| ImageError::Flat { image: "i".parse().unwrap(), kernel: "6.1.0".into(), layers }.to_string();
        assert_eq!(error(3), "image i cannot be flat: expected Linux 6.4 or later in the guest, found \"6.1.0\"");
        assert!(error(129).ends_with("129 layers are too many for another shape"), "{}", error(129));
    }
}
