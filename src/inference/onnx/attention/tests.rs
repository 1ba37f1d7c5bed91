// SPDX-License-Identifier: MPL-2.0

use super::*;

#[test]
#[ignore = "how long it takes, for people"]
fn time() {}
