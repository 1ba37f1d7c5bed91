/* SPDX-License-Identifier: MPL-2.0
 *
 * Stands before every C++ file of whisper.cpp. Its word times are computed by a ggml backend of their own with ggml's
 * default number of threads, which nothing sets at run time; ours is one thread a lane.
 */
#if defined(__has_include)
#if __has_include("ggml.h")
#include "ggml.h"
#undef GGML_DEFAULT_N_THREADS
#define GGML_DEFAULT_N_THREADS 1
#endif
#endif
