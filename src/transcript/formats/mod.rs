// SPDX-License-Identifier: MPL-2.0
//! One pure writer for each caption and transcript format.
