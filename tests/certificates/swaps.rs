//! Every way in which a pair is replaced, under clients that come all the time.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::Served;
use crate::common::certificates::Leaf;
use crate::common::{by_hand, pass};

/// Replaces the pair by `swap` some times (`RINGRESS_TEST_SWAPS`), each after `first`, which leaves half a pair.
fn is_swapped(served: &Served, swap: impl Fn(usize, &Leaf)) {
    let visits = served.visited();
    for number in 0..by_hand("RINGRESS_TEST_SWAPS", 5) {
        let new = served.leaf();
        swap(number, &new);
        served.serves_soon(&new);
    }
    visits.end();
}

/// Long enough for the first half to be looked at alone.
fn in_between() {
    pass(std::time::Duration::from_millis(150));
}

#[test]
fn the_key_may_come_first() {
    let (served, _) = Served::new();
    is_swapped(&served, |_, new| {
        fs::write(served.path("a.key"), &new.key_pem).expect("it can be written");
        in_between();
        fs::write(served.path("a.pem"), &new.cert_pem).expect("it can be written");
    });
    served.proxy.end();
}

#[test]
fn the_chain_may_come_first() {
    let (served, _) = Served::new();
    is_swapped(&served, |_, new| {
        fs::write(served.path("a.pem"), &new.cert_pem).expect("it can be written");
        in_between();
        fs::write(served.path("a.key"), &new.key_pem).expect("it can be written");
    });
    served.proxy.end();
}

#[test]
fn files_may_be_renamed_over() {
    let (served, _) = Served::new();
    let over = |name: &str, text: &str| {
        let new = served.path("new");
        fs::write(&new, text).expect("it can be written");
        fs::rename(new, served.path(name)).expect("it can be renamed");
    };
    is_swapped(&served, |number, new| {
        over("a.pem", &new.cert_pem);
        if number % 2 == 0 {
            in_between();
        }
        over("a.key", &new.key_pem);
    });
    served.proxy.end();
}

/// Puts a link in the place of another one.
fn link(target: impl AsRef<Path>, at: &Path) {
    let new = at.with_file_name("new-link");
    symlink(target, &new).expect("the folder can be written to");
    fs::rename(new, at).expect("the folder can be written to");
}

/// As certbot does: `live/x/privkey.pem` leads to `../../archive/x/privkey1.pem`, which is never changed.
#[test]
fn links_may_be_led_elsewhere() {
    let lay = |folder: &Path, number: usize, leaf: &Leaf| {
        let archive = folder.join("archive/x");
        let files = [("fullchain", &leaf.cert_pem), ("privkey", &leaf.key_pem)];
        for (name, text) in files {
            let file = archive.join(format!("{name}{number}.pem"));
            fs::write(file, text).expect("it can be written");
        }
        for (name, _) in files {
            let target = format!("../../archive/x/{name}{number}.pem");
            link(target, &folder.join(format!("live/x/{name}.pem")));
        }
    };
    let (served, _) = Served::with(|folder, leaf| {
        for name in ["live/x", "archive/x"] {
            fs::create_dir_all(folder.join(name)).expect("the folder can be written to");
        }
        lay(folder, 1, leaf);
        ["fullchain", "privkey"].map(|name| folder.join(format!("live/x/{name}.pem")))
    });
    is_swapped(&served, |number, new| {
        lay(served.folder.path(), number + 2, new);
    });
    served.proxy.end();
}

/// As Kubernetes does: `tls.crt` leads to `..data/tls.crt`, and `..data` to a folder that is replaced.
#[test]
fn a_link_to_a_folder_may_be_led_elsewhere() {
    let lay = |folder: &Path, number: usize, leaf: &Leaf| {
        let name = format!("..2026_{number}");
        let data = folder.join(&name);
        fs::create_dir(&data).expect("the folder can be written to");
        fs::write(data.join("tls.crt"), &leaf.cert_pem).expect("it can be written");
        fs::write(data.join("tls.key"), &leaf.key_pem).expect("it can be written");
        link(&name, &folder.join("..data"));
        if number > 0 {
            let old = folder.join(format!("..2026_{}", number - 1));
            fs::remove_dir_all(old).expect("it was there");
        }
    };
    let (served, _) = Served::with(|folder, leaf| {
        lay(folder, 0, leaf);
        ["tls.crt", "tls.key"].map(|name| {
            let path = folder.join(name);
            symlink(Path::new("..data").join(name), &path).expect("the folder can be written to");
            path
        })
    });
    is_swapped(&served, |number, new| {
        lay(served.folder.path(), number + 1, new);
    });
    served.proxy.end();
}

#[test]
fn a_folder_may_go_and_come_back() {
    let inner = |folder: &Path| folder.join("above/tls");
    let (served, _) = Served::with(|folder, leaf| {
        fs::create_dir_all(inner(folder)).expect("the folder can be written to");
        leaf.write(&inner(folder), "a")
    });
    let root = served.folder.path();
    is_swapped(&served, |number, new| {
        let (above, old) = (root.join("above"), root.join(format!("old{number}")));
        match number % 2 {
            0 => fs::remove_dir_all(inner(root)).expect("it was there"),
            _ => fs::rename(&above, old).expect("it was there"),
        }
        in_between();
        fs::create_dir_all(inner(root)).expect("the folder can be written to");
        in_between();
        let _: [PathBuf; 2] = new.write(&inner(root), "a");
    });
    served.proxy.end();
}
