// SPDX-License-Identifier: MPL-2.0
//! Nothing: a package must have a target, and these are only lists of others.
