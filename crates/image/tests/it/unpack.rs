//! What layers become on disk, and what hostile ones do not.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sampan_image::{ImageError, ImageStore, ImportConfig, LayerError, Limits};
use tempfile::TempDir;

use crate::tars::{Tar, TestImage, archive, gzip, zstd};

pub(crate) struct Scene {
    pub(crate) root: TempDir,
    pub(crate) store: ImageStore,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let root = TempDir::new().unwrap();
        let store = ImageStore::open_with(&root.path().join("images"), limits).unwrap();
        Self { root, store }
    }

    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.root.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) async fn import(&self, tar: &[u8]) -> Result<PathBuf, ImageError> {
        let path = self.file("rootfs.tar", tar);
        let image = self.store.import(&path, "test", ImportConfig::default()).await?;
        Ok(self.store.layer_dirs(&image.id)?.remove(0))
    }

    /// Whether the store holds nothing that counts.
    pub(crate) fn assert_empty(&self, row: &str) {
        for directory in ["blobs/sha256", "layers", "tmp"] {
            let path = self.root.path().join("images").join(directory);
            let left: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(left.is_empty(), "{row}: {left:?} is left");
        }
        assert!(self.store.list().unwrap().is_empty(), "{row}");
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

#[tokio::test]
async fn everything_about_a_file_is_kept() {
    let long = format!("usr/{}", "long-name/".repeat(30));
    // An old capability set (VFS_CAP_REVISION_2 with cap_net_raw), as `setcap` writes it; it has a line feed in it.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::default()
        .raw(b'5', "./", "", 0o750, b"")
        .raw(b'5', "tmp/", "", 0o1777, b"")
        .raw(b'0', "bin/su", "", 0o4755, b"program")
        .pax(&[("uid", b"70000"), ("gid", b"80000"), ("mtime", b"1500000000.25")])
        .file("owned", "by somebody")
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.note", b"a\nb")])
        .raw(b'0', "bin/ping", "", 0o755, b"ping")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.overlay.opaque", b"y")])
        .directory("liar")
        .hard_link("bin/ping6", "/bin/ping")
        .symlink("etc/mtab", "../proc/self/mounts")
        .symlink("absolute", "/etc/passwd")
        .raw(b'6', "pipe", "", 0o620, b"")
        .pax(&[("path", format!("{long}file").as_bytes())])
        .file("short", "far away")
        .file("twice", "first")
        .file("twice", "second")
        .end();
    let root = Scene::new();
    let layer = root.import(&tar).await.unwrap();
    assert_eq!(
        (mode(&layer), mode(&layer.join("tmp")), mode(&layer.join("bin/su"))),
        (0o750, 0o1777, 0o4755)
    );
    let owned = fs::metadata(layer.join("owned")).unwrap();
    assert_eq!((owned.uid(), owned.gid()), (70000, 80000));
    assert_eq!((owned.mtime(), owned.mtime_nsec()), (1_500_000_000, 250_000_000));
    assert_eq!(fs::metadata(layer.join("tmp")).unwrap().mtime(), 1_600_000_000);
    assert_eq!(fs::metadata(&layer).unwrap().mtime(), 1_600_000_000);
    let ping = layer.join("bin/ping");
    assert_eq!(xattr(&ping, "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(xattr(&ping, "user.note").as_deref(), Some(&b"a\nb"[..]));
    assert_eq!(xattr(&layer.join("liar"), "trusted.overlay.opaque"), None);
    assert_eq!(xattr(&layer.join("liar"), "user.overlay.opaque"), None);
    assert_eq!(fs::metadata(&ping).unwrap().ino(), fs::metadata(layer.join("bin/ping6")).unwrap().ino());
    assert_eq!(fs::read_link(layer.join("etc/mtab")).unwrap(), Path::new("../proc/self/mounts"));
    assert_eq!(fs::read_link(layer.join("absolute")).unwrap(), Path::new("/etc/passwd"));
    assert!(fs::metadata(layer.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(mode(&layer.join("pipe")), 0o620);
    assert_eq!(fs::read_to_string(layer.join(format!("{long}file"))).unwrap(), "far away");
    assert_eq!(fs::read_to_string(layer.join("twice")).unwrap(), "second");
}

#[tokio::test]
async fn compressions_give_the_same_layer() {
    let tar = Tar::default().file("a", &"content".repeat(10_000)).end();
    let root = Scene::new();
    let plain = root.import(&tar).await.unwrap();
    assert_eq!(root.import(&gzip(&tar)).await.unwrap(), plain);
    assert_eq!(root.import(&zstd(&tar)).await.unwrap(), plain);
    let members = [gzip(&tar[..1000]), gzip(&tar[1000..])].concat();
    assert_eq!(root.import(&members).await.unwrap(), plain);
}

#[tokio::test]
async fn hostile_archives_are_refused_and_leave_nothing() {
    let outside = TempDir::new().unwrap();
    let target = outside.path().to_str().unwrap();
    let tar = Tar::default;
    let good = tar().file("a", "content").end();
    let device = |kind| {
        tar().raw(kind, "dev/x", "", 0o600, b"").with(|header| {
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
        })
    };
    let claim = |size| tar().raw(b'0', "a", "", 0o644, b"").with(|header| header.set_size(size));
    type Check = fn(&LayerError) -> bool;
    let is = |check: Check| check;
    let escapes = is(|error| matches!(error, LayerError::Escapes { .. }));
    let malformed = is(|error| matches!(error, LayerError::Malformed { .. }));
    let truncated = is(|error| matches!(error, LayerError::Truncated { .. }));
    let bomb = is(|error| matches!(error, LayerError::Bomb { .. }));
    let any_device = is(|error| matches!(error, LayerError::Device { .. }));
    let io = is(|error| matches!(error, LayerError::Io { .. }));
    let rows: Vec<(&str, Vec<u8>, Check)> = vec![
        ("dots", tar().file("../evil", "x").end(), escapes),
        ("dots inside", tar().directory("a").file("a/../../evil", "x").end(), escapes),
        ("absolute link", tar().symlink("l", target).file("l/evil", "x").end(), escapes),
        ("relative link out", tar().symlink("l", "../..").file("l/evil", "x").end(), escapes),
        ("two links out", tar().symlink("a", ".").symlink("a/b", "..").file("b/evil", "x").end(), escapes),
        ("link circle", tar().symlink("a", "b").symlink("b", "a").file("a/evil", "x").end(), escapes),
        ("hard link out", tar().hard_link("l", "../../../etc/passwd").end(), escapes),
        ("hard link through link", tar().symlink("l", "/etc").hard_link("x", "l/passwd").end(), escapes),
        ("hard link to directory", tar().directory("d").hard_link("x", "d").end(), escapes),
        ("hard link to nothing", tar().hard_link("x", "etc/passwd").end(), io),
        ("link as root", tar().symlink("./", "/etc").end(), escapes),
        ("whiteout of dots", tar().file(".wh...", "").end(), escapes),
        ("whiteout of nothing", tar().file(".wh.", "").end(), escapes),
        ("hard link to whiteout", tar().file(".wh.a", "").hard_link("b", "a").end(), escapes),
        ("character device", device(b'3').end(), any_device),
        ("block device", device(b'4').end(), any_device),
        ("a zero in a name", tar().pax(&[("path", b"a\0b")]).file("x", "").end(), malformed),
        ("unknown type", tar().raw(b'Z', "a", "", 0, b"").end(), malformed),
        ("sparse", tar().raw(b'S', "a", "", 0, b"").end(), malformed),
        ("sparse by pax", tar().pax(&[("GNU.sparse.major", b"1")]).file("a", "").end(), malformed),
        (
            "bad checksum",
            {
                let mut bytes = good.clone();
                bytes[0] = b'b';
                bytes
            },
            malformed,
        ),
        ("no archive", vec![7; 4096], malformed),
        ("short header", good[..100].to_vec(), truncated),
        ("short content", good[..515].to_vec(), truncated),
        (
            "short gzip",
            {
                let packed = gzip(&good);
                packed[..packed.len() - 20].to_vec()
            },
            truncated,
        ),
        (
            "broken gzip",
            {
                let mut packed = gzip(&good);
                packed[15] ^= 0xff;
                packed
            },
            malformed,
        ),
        (
            "short zstd",
            {
                let packed = zstd(&good);
                packed[..packed.len() - 5].to_vec()
            },
            truncated,
        ),
        ("claims too much", claim(1 << 40).open_end(), bomb),
        ("claims more than is there", claim(1 << 19).open_end(), truncated),
        ("claims the most", claim(u64::MAX).open_end(), bomb),
        (
            "long name bomb",
            tar().raw(b'L', "x", "", 0, b"").with(|header| header.set_size(1 << 30)).open_end(),
            bomb,
        ),
        ("many bytes", gzip(&tar().file("a", &"0".repeat(2 << 20)).end()), bomb),
        ("many zeros", gzip(&[good.clone(), vec![0; 2 << 20]].concat()), bomb),
        ("many entries", (0..600).fold(tar(), |tar, n| tar.directory(&n.to_string())).end(), bomb),
        ("long path", tar().pax(&[("path", "a/".repeat(3000).as_bytes())]).file("x", "").end(), bomb),
    ];
    let limits = Limits { entries: 500, bytes: 1 << 20 };
    let root = Scene::with(limits);
    for (row, bytes, expected) in rows {
        match root.import(&bytes).await {
            Err(ImageError::Layer { source, .. }) if expected(&source) => {}
            other => panic!("{row}: {other:?}"),
        }
        root.assert_empty(row);
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn links_that_stay_inside_are_followed() {
    let tar = Tar::default().directory("usr/lib").symlink("lib", "usr/lib").file("lib/a", "here").end();
    let scene = Scene::new();
    let layer = scene.import(&tar).await.unwrap();
    assert_eq!(fs::read_to_string(layer.join("usr/lib/a")).unwrap(), "here");
}

/// An overlay mount that goes with the test.
struct Overlay(TempDir);

impl Overlay {
    fn new(layers: &[PathBuf]) -> Option<Self> {
        let target = TempDir::new().unwrap();
        let lower: Vec<_> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
        let data = std::ffi::CString::new(format!("lowerdir={}", lower.join(":"))).unwrap();
        match mount("overlay", target.path(), "overlay", MountFlags::RDONLY, Some(data.as_c_str())) {
            Ok(()) => Some(Self(target)),
            Err(errno) => {
                println!("skipped: cannot mount an overlay here: {errno}");
                None
            }
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn whiteouts_hide_what_is_below() {
    let base = Tar::default()
        .file("gone", "1")
        .file("kept", "1")
        .file("opaque/old", "1")
        .file("replaced/old", "1")
        .file("again/old", "1")
        .file("deep/er/gone", "1")
        .end();
    let top = Tar::default()
        .file(".wh.gone", "")
        .file(".wh..wh.aufs", "")
        .directory("opaque")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "2")
        // Hidden and made again, in both orders.
        .file(".wh.replaced", "")
        .file("replaced/new", "2")
        .file("again/new", "2")
        .file(".wh.again", "")
        .file("deep/er/.wh.gone", "")
        .end();
    let root = Scene::new();
    let image = TestImage::new(&[base.clone(), top, base], gzip);
    let path = root.file("image.tar", &archive(&image.layout("test/whiteouts:1")));
    let loaded = root.store.load(&path).await.unwrap().remove(0);
    let layers = root.store.layer_dirs(&loaded.id).unwrap();
    // The base is there twice; overlayfs gets it once, on top.
    assert_eq!(layers.len(), 2);
    let hidden = fs::symlink_metadata(layers[1].join("gone")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    assert_eq!(xattr(&layers[1].join("opaque"), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]));
    let order = [layers[1].clone(), layers[0].clone()];
    let Some(overlay) = Overlay::new(&order) else { return };
    let mut names: Vec<_> = walk(overlay.0.path(), overlay.0.path());
    names.sort();
    assert_eq!(names, ["again/new", "kept", "opaque/new", "replaced/new"]);
}

fn walk(root: &Path, directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names.extend(walk(root, &path));
        } else {
            names.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
    names
}
