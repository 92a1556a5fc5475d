//! Images from files, names, removal, and what a crash leaves.

use std::fs;
use std::path::Path;

use sampan_image::{ImageError, ImageStore, ImportConfig};
use serde_json::json;

use crate::tars::{Tar, TestImage, archive, busybox, digest, gzip, zstd};
use crate::unpack::Scene;

fn image() -> TestImage {
    TestImage::new(&[busybox(), Tar::default().file("etc/motd", "hello").end()], gzip)
}

#[tokio::test]
async fn layouts_and_archives_load() {
    let image = image();
    let files = image.layout("example.com/team/app:v1");
    let tar = archive(&files);
    let scene = Scene::new();
    let directory = scene.root.path().join("layout");
    for (name, bytes) in &files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    for path in [
        directory,
        scene.file("image.tar", &tar),
        scene.file("image.tar.gz", &gzip(&tar)),
        scene.file("image.tar.zst", &zstd(&tar)),
    ] {
        let root = Scene::new();
        let loaded = root.store.load(&path).await.unwrap();
        assert_eq!(loaded.len(), 1, "{}", path.display());
        let loaded = &loaded[0];
        assert_eq!(loaded.id, image.id());
        assert_eq!(loaded.references, ["example.com/team/app:v1"]);
        assert_eq!(loaded.config.cmd, ["/bin/sh"]);
        assert_eq!(loaded.config.exposed_ports, ["80/tcp"]);
        assert_eq!(loaded.config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(loaded.config.volumes, ["/data"]);
        assert_eq!(loaded.created, "2026-01-02T03:04:05Z");
        assert!(loaded.size > 0);
        let layers = root.store.layer_dirs(&loaded.id).unwrap();
        assert_eq!(fs::read_to_string(layers[0].join("etc/motd")).unwrap(), "hello");
        assert!(layers[1].join("bin/busybox").is_file());
        // Another opening sees the same.
        let again = ImageStore::open(&root.root.path().join("images")).unwrap();
        assert_eq!(again.list().unwrap(), std::slice::from_ref(loaded));
        assert_eq!(again.layer_dirs(&loaded.id).unwrap(), layers);
    }
}

#[tokio::test]
async fn docker_archives_load() {
    let image = TestImage::new(&[busybox(), Tar::default().file("a", "1").end()], |layer| layer.to_vec());
    let scene = Scene::new();
    let tags = ["busybox:test", "example.com/b:2"];
    let path = scene.file("old.tar", &archive(&image.docker_save(&tags)));
    let loaded = scene.store.load(&path).await.unwrap().remove(0);
    assert_eq!(loaded.references, ["docker.io/library/busybox:test", "example.com/b:2"]);
    assert_eq!(loaded.id, image.id());
    // New archives are layouts as well, and only one of the two documents has all names.
    let mut files = image.layout("busybox:new");
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", &digest(bytes)[7..]);
    let layers: Vec<_> = image.layers.iter().map(|layer| blob(layer)).collect();
    let docker = json!([{"Config": blob(&image.config), "RepoTags": ["busybox:newer"], "Layers": layers}]);
    files.push(("manifest.json".to_owned(), docker.to_string().into_bytes()));
    let path = scene.file("new.tar", &archive(&files));
    let loaded = scene.store.load(&path).await.unwrap().remove(0);
    assert_eq!(loaded.references.len(), 4, "{:?}", loaded.references);
    // Repeated layers are links in old archives.
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(&image.layers[1]), digest(&image.layers[1])]}});
    let twice = TestImage::with_config(&config, vec![image.layers[1].clone(); 2]);
    let mut files = twice.docker_save(&["twice"]);
    files.retain(|(name, _)| name != "layer1/layer.tar");
    let mut tar = archive(&files);
    tar.truncate(tar.len() - 1024);
    tar.extend(Tar::default().symlink("layer1/layer.tar", "../layer0/layer.tar").end());
    let path = scene.file("links.tar", &tar);
    let loaded = scene.store.load(&path).await.unwrap().remove(0);
    assert_eq!(scene.store.layer_dirs(&loaded.id).unwrap().len(), 1);
}

#[tokio::test]
async fn a_foreign_platform_is_named() {
    let config =
        json!({"architecture": "s390x", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    let image = TestImage::with_config(&config, vec![]);
    let scene = Scene::new();
    let path = scene.file("image.tar", &archive(&image.layout("x/y:1")));
    let error = scene.store.load(&path).await.unwrap_err();
    assert!(
        matches!(&error, ImageError::Platform { available, .. } if available == "linux/s390x"),
        "{error}"
    );
    scene.assert_empty("foreign");
}

#[tokio::test]
async fn lying_archives_are_refused_and_leave_nothing() {
    let good = image();
    let other = Tar::default().file("evil", "x").end();
    let mut wrong_layer = good.layout("a/b:1");
    for (name, bytes) in &mut wrong_layer {
        if name.ends_with(&digest(&good.layers[1])[7..]) {
            *bytes = gzip(&other);
        }
    }
    let mut wrong_config = good.layout("a/b:1");
    for (name, bytes) in &mut wrong_config {
        if name.ends_with(&good.id()[7..]) {
            bytes.push(b' ');
        }
    }
    let mut missing = good.layout("a/b:1");
    missing.retain(|(name, _)| !name.ends_with(&digest(&good.layers[0])[7..]));
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(&other)]}});
    let wrong_diff_id = TestImage::with_config(&config, vec![good.layers[0].clone()]);
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    let too_few = TestImage::with_config(&config, vec![good.layers[0].clone()]);
    let large = vec![b' '; 5 << 20];
    let rows = [
        ("wrong layer", wrong_layer),
        ("wrong configuration", wrong_config),
        ("missing layer", missing),
        ("wrong diff id", wrong_diff_id.layout("a/b:1")),
        ("too few diff ids", too_few.layout("a/b:1")),
        ("neither", vec![("x".to_owned(), b"x".to_vec())]),
        ("large index", vec![("index.json".to_owned(), large)]),
        (
            "paths out",
            vec![("manifest.json".to_owned(), br#"[{"Config":"../../../etc/passwd","Layers":[]}]"#.to_vec())],
        ),
        ("bad name", good.docker_save(&["../../x"])),
    ];
    let scene = Scene::new();
    for (row, files) in rows {
        let path = scene.file("image.tar", &archive(&files));
        let result = scene.store.load(&path).await;
        assert!(result.is_err(), "{row}");
        scene.assert_empty(row);
    }
}

#[tokio::test]
async fn an_imported_root_file_system_is_an_image() {
    let scene = Scene::new();
    let path = scene.file("rootfs.tar.gz", &gzip(&busybox()));
    let config = ImportConfig {
        entrypoint: vec!["/bin/sh".to_owned()],
        env: vec!["PATH=/bin".to_owned()],
        exposed_ports: vec!["80/tcp".to_owned()],
        ..ImportConfig::default()
    };
    let image = scene.store.import(&path, "busybox", config).await.unwrap();
    assert_eq!(image.references, ["docker.io/library/busybox:latest"]);
    assert_eq!(
        (image.config.entrypoint, image.config.exposed_ports),
        (vec!["/bin/sh".into()], vec!["80/tcp".into()])
    );
    let layer = scene.store.layer_dirs("busybox").unwrap().remove(0);
    assert_eq!(fs::read_link(layer.join("bin/sh")).unwrap(), Path::new("busybox"));
    assert!(scene.store.import(&path, "Not/A/Name", ImportConfig::default()).await.is_err());
}

#[tokio::test]
async fn removal_by_name_id_and_pin() {
    let scene = Scene::new();
    let (one, two) = (image(), TestImage::new(&[busybox()], gzip));
    for (image, name) in [(&one, "app:1"), (&two, "app:2")] {
        let path = scene.file("image.tar", &archive(&image.layout(&format!("docker.io/library/{name}"))));
        scene.store.load(&path).await.unwrap();
    }
    scene.store.tag("app:1", "app:latest").unwrap();
    let layer = scene.store.layer_dirs(&one.id()).unwrap();
    let removed = scene.store.remove("app:1").unwrap();
    assert_eq!(
        (removed.untagged.as_slice(), removed.deleted.len()),
        (&["docker.io/library/app:1".to_owned()][..], 0)
    );
    let pin = scene.store.pin("app:latest").unwrap();
    assert!(matches!(scene.store.remove("app"), Err(ImageError::InUse { .. })));
    drop(pin);
    let removed = scene.store.remove("app").unwrap();
    assert_eq!(removed.deleted, [one.id()]);
    // One layer was its own, the other is still used.
    assert!(removed.freed >= one.layers[1].len() as u64 && removed.freed < one.layers[0].len() as u64);
    assert!(!layer[0].exists() && layer[1].exists());
    assert!(scene.store.get("app:latest").unwrap().is_none());
    assert!(matches!(scene.store.remove("app"), Err(ImageError::NotFound { .. })));
    assert!(scene.store.pin("app").is_err());
    let removed = scene.store.remove(&two.id()[7..19]).unwrap();
    assert_eq!(removed.untagged, ["docker.io/library/app:2"]);
    scene.assert_empty("all removed");
}

#[tokio::test]
async fn what_a_crash_leaves_is_cleaned_at_the_next_opening() {
    let scene = Scene::new();
    let path = scene.file("image.tar", &archive(&image().layout("a/b:1")));
    let loaded = scene.store.load(&path).await.unwrap().remove(0);
    let root = scene.root.path().join("images");
    let before = scene.store.layer_dirs(&loaded.id).unwrap();
    fs::create_dir_all(root.join("tmp/.tmpX/layer/etc")).unwrap();
    fs::write(root.join("tmp/.tmpY"), "half a blob").unwrap();
    fs::create_dir_all(root.join("layers").join("0".repeat(64)).join("etc")).unwrap();
    fs::write(root.join("blobs/sha256").join("0".repeat(64)), "nobody's").unwrap();
    let again = ImageStore::open(&root).unwrap();
    assert_eq!(again.layer_dirs(&loaded.id).unwrap(), before);
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(root.join("layers")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(root.join("blobs/sha256")).unwrap().count(), 4);
}
