# SPDX-License-Identifier: Apache-2.0
# The library exports the functions of its header and nothing else; it needs no C++ runtime and no
# NCCL, and knows no folder of the machine that built it.
#   cmake -D LIBRARY=… -D HEADER=… -D NM=… -D READELF=… -D SANITIZE=… -P exports_test.cmake
execute_process(COMMAND ${NM} -D --defined-only ${LIBRARY} OUTPUT_VARIABLE symbols
  COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^ \n]+\n" exported "${symbols}")
list(TRANSFORM exported STRIP)
list(SORT exported)

file(READ ${HEADER} header)
string(REGEX MATCHALL "EPLB_API [a-z0-9_]+ eplb_[a-z_]+" declared "${header}")
list(TRANSFORM declared REPLACE ".* " "")
list(SORT declared)
list(LENGTH declared count)
if(count LESS 20)
  message(FATAL_ERROR "only ${count} functions were found in ${HEADER}")
endif()
if(NOT exported STREQUAL declared)
  message(FATAL_ERROR "exported: ${exported}\ndeclared: ${declared}")
endif()

execute_process(COMMAND ${READELF} -d ${LIBRARY} OUTPUT_VARIABLE dynamic COMMAND_ERROR_IS_FATAL ANY)
if(dynamic MATCHES "RPATH|RUNPATH")
  message(FATAL_ERROR "the library has a run path:\n${dynamic}")
endif()
if(NOT SANITIZE AND dynamic MATCHES "NEEDED[^\n]*(stdc\\+\\+|libgcc|nccl|cudart)")
  message(FATAL_ERROR "the library needs what its users may lack:\n${dynamic}")
endif()
