# xgrammar's C++ library, for structured output: the pinned source package from PyPI, fetched once into isobit's cache folder.
set(ISOBIT_XGRAMMAR_VERSION 0.2.8)
set(ISOBIT_XGRAMMAR_SHA256 8305646fd2b319d6c3003f51a1665e54cbbe9cba1fb636bc41d0b46434ccbb80)
set(ISOBIT_XGRAMMAR_SOURCE "" CACHE PATH "Folder of xgrammar's unpacked source package; empty: fetched from PyPI")

function(isobit_fetch_xgrammar folder_out)
  if(ISOBIT_XGRAMMAR_SOURCE)
    set(${folder_out} ${ISOBIT_XGRAMMAR_SOURCE} PARENT_SCOPE)
    return()
  endif()
  set(cache $ENV{ISOBIT_CACHE})
  if(NOT cache)
    set(cache $ENV{XDG_CACHE_HOME})
    if(NOT cache)
      set(cache $ENV{HOME}/.cache)
    endif()
    set(cache ${cache}/isobit)
  endif()
  set(folder ${cache}/sources/xgrammar-${ISOBIT_XGRAMMAR_VERSION})
  if(NOT IS_DIRECTORY ${folder})
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    message(STATUS "isobit: fetching xgrammar ${ISOBIT_XGRAMMAR_VERSION}")
    execute_process(RESULT_VARIABLE result
      COMMAND ${CMAKE_COMMAND} -E env PYTHONDONTWRITEBYTECODE=1 ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/scripts/fetch_source.py
        xgrammar==${ISOBIT_XGRAMMAR_VERSION} --sha256 ${ISOBIT_XGRAMMAR_SHA256} --to ${folder})
    if(NOT result EQUAL 0)
      message(FATAL_ERROR "xgrammar could not be fetched (see above). Without a network, unpack its source package and name the "
        "folder: -DISOBIT_XGRAMMAR_SOURCE=…")
    endif()
  endif()
  set(${folder_out} ${folder} PARENT_SCOPE)
endfunction()

# 0.2.8 lets control characters into strings of bounded length, which JSON forbids.
function(isobit_mend_xgrammar source mended)
  file(READ ${source} text)
  set(wrong [[{{'"', '"'}, {'\\', '\\'}, {'\r', '\r'}, {'\n', '\n'}}, true]])
  string(FIND "${text}" "${wrong}" found)
  if(found EQUAL -1)
    message(FATAL_ERROR "${source} is not that of xgrammar ${ISOBIT_XGRAMMAR_VERSION}")
  endif()
  string(REPLACE "${wrong}" [[{{0, 31}, {'"', '"'}, {'\\', '\\'}}, true]] text "${text}")
  file(CONFIGURE OUTPUT ${mended} CONTENT "${text}" @ONLY)
endfunction()

# Without its Python bindings. Compiled several files at a time and with -O1: it takes a fraction of the time, and a mask is still
# made in well under the time of a step.
function(isobit_xgrammar_library)
  isobit_fetch_xgrammar(folder)
  file(GLOB sources ${folder}/cpp/*.cc ${folder}/cpp/converter_ext/*.cc ${folder}/cpp/support/*.cc)
  list(REMOVE_ITEM sources ${folder}/cpp/json_schema_converter.cc)
  set(mended ${PROJECT_BINARY_DIR}/xgrammar/json_schema_converter.cc)
  isobit_mend_xgrammar(${folder}/cpp/json_schema_converter.cc ${mended})
  add_library(xgrammar STATIC ${sources} ${mended})
  target_include_directories(xgrammar SYSTEM PUBLIC ${folder}/include ${folder}/3rdparty/dlpack/include
    PRIVATE ${folder}/cpp ${folder}/3rdparty/picojson)
  # LOG_CUSTOMIZE: what it refuses and says comes to functions of ours (grammar/xgrammar_log.cpp).
  target_compile_definitions(xgrammar PRIVATE XGRAMMAR_ENABLE_CPPTRACE=0 XGRAMMAR_ENABLE_INTERNAL_CHECK=0 XGRAMMAR_LOG_CUSTOMIZE=1)
  target_compile_options(xgrammar PRIVATE -w -O1)
  set_target_properties(xgrammar PROPERTIES CXX_STANDARD 17 UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8 EXPORT_COMPILE_COMMANDS OFF)
  set_source_files_properties(${mended} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()
