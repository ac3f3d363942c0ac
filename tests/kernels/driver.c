// Stands in for libcuda.so.1 on a machine without a GPU, so that kernels can be compiled for an H100, though not run.
#include <string.h>

static int handle;
enum { SHARED_MEMORY = 97, WARP = 10, PROCESSORS = 16, MAJOR = 75 };

int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "NVIDIA H100", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case MAJOR: *value = 9; break;
    case SHARED_MEMORY: *value = 227 * 1024; break;
    case PROCESSORS: *value = 132; break;
    case WARP: *value = 32; break;
    default: *value = 0;
  }
  return 0;
}
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuCtxGetCurrent(void **context) { *context = &handle; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = &handle; return 0; }
int cuModuleLoadDataEx(void **module, const void *image) { *module = &handle; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = &handle; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = 0; return 0; }
int cuGetErrorName(int error, const char **name) { *name = "none"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "none"; return 0; }
#define NOTHING(name) int name(void) { return 0; }
NOTHING(cuInit) NOTHING(cuCtxSetCurrent) NOTHING(cuFuncSetAttribute) NOTHING(cuModuleUnload) NOTHING(cuLaunchKernelEx)
