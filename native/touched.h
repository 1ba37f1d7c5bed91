/* SPDX-License-Identifier: MPL-2.0
 *
 * Stands before every C++ file of whisper.cpp. A state reserves its compute buffers when it is made, but the system
 * gives their pages when they are first written, and ggml's work buffer is not even reserved before the first long
 * sound: minutes into a file, when somebody else may have taken the memory. Here all of it is written once, at once.
 * See docs/adr/0007-lanes-at-their-largest.md.
 */
#if defined(__has_include)
#if __has_include("ggml-backend.h") && __has_include("ggml-cpu.h")
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <cstddef>

/* Work memory that this thread's next graph must have room for. */
inline thread_local size_t scribe_least_work = 0;

static inline void scribe_touch(void * base, size_t size) {
    for (size_t at = 0; at < size; at += 4096) {
        ((volatile char *) base)[at] = 0;
    }
}

#ifdef WHISPER_VERSION /* whisper.cpp itself: its graphs. */

/* Most tokens of one decoder pass: WIDEST_PASS of src/inference/whisper_cpp/lane.rs. whisper.cpp reserves for 448. */
static const size_t scribe_widest_pass = 228;

/* The scheduler that was made last and has no graph yet. */
static thread_local ggml_backend_sched_t scribe_new_sched = nullptr;

static inline ggml_backend_sched_t scribe_sched_new(
        ggml_backend_t * backends, ggml_backend_buffer_type_t * bufts, int n_backends, size_t graph_size, bool parallel,
        bool op_offload) {
    scribe_new_sched = ggml_backend_sched_new(backends, bufts, n_backends, graph_size, parallel, op_offload);
    return scribe_new_sched;
}

static inline bool scribe_sched_alloc_graph(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    if (!ggml_backend_sched_alloc_graph(sched, graph)) {
        return false;
    }
    /* The first graph of each is its worst case, and is not computed. */
    if (sched != scribe_new_sched) {
        return true;
    }
    scribe_new_sched = nullptr;
    const struct ggml_tensor * node = nullptr;
    for (int i = 0; i < ggml_graph_n_nodes(graph) && !node; ++i) {
        const struct ggml_tensor * one = ggml_graph_node(graph, i);
        if (!one->view_src && one->buffer) {
            node = one;
        }
    }
    /* A card takes all of it by itself, and works without a buffer of ours. */
    if (!node || !ggml_backend_buffer_is_host(node->buffer)) {
        return true;
    }
    size_t size = ggml_backend_buffer_get_size(node->buffer);
    const struct ggml_tensor * mask = ggml_graph_get_tensor(graph, "KQ_mask");
    if (mask && (size_t) mask->ne[1] > scribe_widest_pass) {
        /* The decoder's: narrower passes lie in the first part of what the widest takes. */
        size = size / (size_t) mask->ne[1] * scribe_widest_pass;
    }
    scribe_touch(ggml_backend_buffer_get_base(node->buffer), size);
    const size_t work = ggml_graph_plan(graph, 1, nullptr).work_size;
    if (work > scribe_least_work) {
        scribe_least_work = work;
    }
    return true;
}

#define ggml_backend_sched_new scribe_sched_new
#define ggml_backend_sched_alloc_graph scribe_sched_alloc_graph

#else /* ggml's own files: the processor's back-end makes its work buffer by the plan. */

static inline struct ggml_cplan scribe_graph_plan(
        const struct ggml_cgraph * graph, int n_threads, struct ggml_threadpool * threadpool) {
    struct ggml_cplan plan = ggml_graph_plan(graph, n_threads, threadpool);
    if (plan.work_size < scribe_least_work) {
        plan.work_size = scribe_least_work;
    }
    return plan;
}

static inline enum ggml_status scribe_graph_compute(struct ggml_cgraph * graph, struct ggml_cplan * plan) {
    if (scribe_least_work) {
        scribe_least_work = 0;
        scribe_touch(plan->work_data, plan->work_size);
    }
    return ggml_graph_compute(graph, plan);
}

#define ggml_graph_plan scribe_graph_plan
#define ggml_graph_compute scribe_graph_compute

#endif
#endif
#endif
