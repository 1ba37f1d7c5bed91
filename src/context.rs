// SPDX-License-Identifier: MPL-2.0
//! The registry as a GstContext, so that an application or a test can give its elements one of its own.

use gst::glib;
use gst::prelude::*;

use crate::registry::Registry;

/// Type of the context and name of its field.
pub const REGISTRY: &str = "scribe.registry";
const FIELD: &str = "registry";

#[derive(Clone, Debug, glib::Boxed)]
#[boxed_type(name = "GstScribeRegistry")]
struct SharedRegistry(Registry);

/// A context for `gst_element_set_context` that makes elements use `registry`.
pub fn registry_context(registry: &Registry) -> gst::Context {
    let mut context = gst::Context::new(REGISTRY, true);
    if let Some(context) = context.get_mut() {
        context
            .structure_mut()
            .set(FIELD, SharedRegistry(registry.clone()));
    }
    context
}

/// The registry an element is to use: the one it was given, else the process's own.
pub fn registry_of(element: &impl IsA<gst::Element>) -> Registry {
    element
        .upcast_ref::<gst::Element>()
        .context(REGISTRY)
        .and_then(|context| context.structure().get::<SharedRegistry>(FIELD).ok())
        .map_or_else(|| Registry::global().clone(), |shared| shared.0)
}
