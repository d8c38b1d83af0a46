//! Moving an application to another node, as README says.

mod common;
#[path = "common/shop.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod shop;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod tiny;
#[path = "common/web.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod web;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};

use common::{Farm, tool};
use shop::{PORT, Shop, assert_serves};
use signal::word;
use web::get;

/// What the application has where it was before, and where it comes to: in both places the
/// account's number is another one.
#[test]
fn an_application_comes_back_with_its_data_and_secrets() {
    let farm = Farm::new();
    let rest = "[[data]]\nname = \"orders\"\npath = \"/srv/orders\"\n\n\
                [[secret]]\nname = \"KEY\"\ngenerate = true\n\n";
    let tarball = Shop { rest, ..Shop::new("1.0") }.pack(&farm);
    let lines = farm.root().join("etc/farmctl/nginx/shop");
    fs::create_dir_all(&lines).expect("there is room");
    fs::write(lines.join("own.conf"), "location = /own { return 200 own; }\n")
        .expect("there is room");
    farm.run(&["install", word(&tarball)]).ok();
    farm.run(&["start", "shop"]).ok();
    assert_eq!(get(PORT, "/own").body, "own");
    let order = farm.state("data/shop/orders/1/order");
    fs::create_dir(order.parent().expect("it has one")).expect("there is room");
    fs::write(&order, "two apples\n").expect("there is room");
    // An account that no machine gives the application, so that it is another's afterwards.
    const BEFORE: u32 = 345_678;
    for path in [order.parent().expect("it has one"), &order] {
        chown(path, Some(BEFORE), Some(BEFORE)).expect("tests run as root");
    }
    let data = farm.state("data/shop/orders");
    let secrets = farm.root().join("etc/farmctl/apps/shop.env");
    let secret = fs::read_to_string(&secrets).expect("it was generated");

    farm.run(&["stop", "shop"]).ok();
    chown(&data, Some(BEFORE), Some(BEFORE)).expect("tests run as root");
    let saved = farm.root().join("shop.tar");
    let (root, saved) = (word(farm.root()), word(&saved));
    let parts =
        ["etc/farmctl/apps/shop.env", "etc/farmctl/nginx/shop", "var/lib/farmctl/data/shop"];
    tool("tar", &[&["-cf", saved, "-C", root], &parts[..]].concat());
    farm.run(&["remove", "shop", "--data"]).ok();
    assert!(!order.exists() && !secrets.exists());
    // An administrator's own, which no verb removes.
    fs::remove_dir_all(&lines).expect("it is there");

    tool("tar", &["-xf", saved, "-C", root, "--numeric-owner"]);
    farm.run(&["install", word(&tarball)]).ok();
    farm.run(&["start", "shop"]).ok();
    assert_serves("1.0");
    assert_eq!(get(PORT, "/own").body, "own");
    assert_eq!(fs::read_to_string(&order).expect("it came along"), "two apples\n");
    assert_eq!(fs::read_to_string(&secrets).expect("it came along"), secret);
    let owner = fs::metadata(&order).expect("it came along").uid();
    assert_eq!(owner, fs::metadata(&data).expect("it is there").uid());
    assert_ne!(owner, BEFORE);
}
