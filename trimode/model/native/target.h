// Functions between `TRIMODE_BEGIN` and `TRIMODE_END` may use more instructions than the rest of the library. A flag
// of the compiler for a whole file would let the linker choose such a copy of a function that other files share.
#pragma once

#ifdef __clang__
#define TRIMODE_PRAGMA(x) _Pragma(#x)
#define TRIMODE_BEGIN(set) TRIMODE_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define TRIMODE_END _Pragma("clang attribute pop")
#else
#define TRIMODE_PRAGMA(x) _Pragma(#x)
#define TRIMODE_BEGIN(set) _Pragma("GCC push_options") TRIMODE_PRAGMA(GCC target(set))
#define TRIMODE_END _Pragma("GCC pop_options")
#endif
