// SPDX-License-Identifier: MPL-2.0
//! Words to cues.
