# SPDX-License-Identifier: MPL-2.0
#
# Read by CMake after each project() of whisper.cpp: .cargo/config.toml names it. See docs/adr/0006-one-thread.md and
# docs/adr/0007-lanes-at-their-largest.md.
add_compile_options("SHELL:$<$<COMPILE_LANGUAGE:CXX>:-include ${CMAKE_CURRENT_LIST_DIR}/one_thread.h>")
add_compile_options("SHELL:$<$<COMPILE_LANGUAGE:CXX>:-include ${CMAKE_CURRENT_LIST_DIR}/touched.h>")
