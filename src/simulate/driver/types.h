/*
 * What crosses NVML's border: the answers and the structs, with their layouts nailed down. Sizes and offsets
 * are those of the public nvml.h on 64-bit Linux.
 */
#ifndef TYPES_H
#define TYPES_H

#include <stddef.h>
#include <stdint.h>

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMED_OUT = 10,
    GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18,
    OUT_OF_MEMORY = 20,
    VERSION_MISMATCH = 25,
};

typedef unsigned int answer;
/* A handle. For a GPU its index plus one, so that a null handle is none; for a MIG device see visit.c. */
typedef void *device;
typedef void *event_set;
typedef unsigned long long wide;

/* NVML_STRUCT_VERSION of the header. */
#define STRUCT_VERSION(type, version) ((unsigned int)sizeof(type) | (unsigned int)(version) << 24)
#define AT(type, member, offset) _Static_assert(offsetof(type, member) == (offset), #type "." #member)
#define SIZE(type, size) _Static_assert(sizeof(type) == (size), #type)

/* The layouts below are those of 64-bit systems. */
_Static_assert(sizeof(void *) == 8 && sizeof(wide) == 8 && sizeof(unsigned int) == 4, "a 64-bit system");

struct memory_v1 { wide total, free, used; };
SIZE(struct memory_v1, 24);
AT(struct memory_v1, free, 8);
AT(struct memory_v1, used, 16);

struct memory_v2 { unsigned int version; wide total, reserved, free, used; };
SIZE(struct memory_v2, 40);
AT(struct memory_v2, total, 8);
AT(struct memory_v2, reserved, 16);
AT(struct memory_v2, free, 24);
AT(struct memory_v2, used, 32);

struct bar1_memory { wide total, free, used; };
SIZE(struct bar1_memory, 24);

struct utilization { unsigned int gpu, memory; };
SIZE(struct utilization, 8);

struct process { unsigned int pid; wide memory; unsigned int gpu_instance, compute_instance; };
SIZE(struct process, 24);
AT(struct process, memory, 8);
AT(struct process, gpu_instance, 16);
AT(struct process, compute_instance, 20);

struct process_sample { unsigned int pid; wide timestamp; unsigned int sm, memory, encoder, decoder; };
SIZE(struct process_sample, 32);
AT(struct process_sample, timestamp, 8);
AT(struct process_sample, sm, 16);
AT(struct process_sample, decoder, 28);

struct pci_info {
    char legacy_id[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char id[32];
};
SIZE(struct pci_info, 68);
AT(struct pci_info, domain, 16);
AT(struct pci_info, device_id, 28);
AT(struct pci_info, id, 36);

struct temperature { unsigned int version, sensor; int temperature; };
SIZE(struct temperature, 12);

struct ecc_counts { wide l1_cache, l2_cache, device_memory, register_file; };
SIZE(struct ecc_counts, 32);
AT(struct ecc_counts, device_memory, 16);

struct row_histogram { unsigned int max, high, partial, low, none; };
SIZE(struct row_histogram, 20);

struct violation { wide reference_ns, violation_ns; };
SIZE(struct violation, 16);

struct attributes {
    unsigned int multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    wide memory_mib;
};
SIZE(struct attributes, 40);
AT(struct attributes, gpu_slices, 24);
AT(struct attributes, memory_mib, 32);

enum { VALUE_UINT = 1, VALUE_WIDE = 3 };
union value { double real; unsigned int narrow; wide wide; };

struct field_value {
    unsigned int field, scope;
    long long timestamp_us, latency_us;
    unsigned int type;
    answer answer;
    union value value;
};
SIZE(struct field_value, 40);
AT(struct field_value, timestamp_us, 8);
AT(struct field_value, type, 24);
AT(struct field_value, answer, 28);
AT(struct field_value, value, 32);

/* The first version ends before the instances. */
struct event_v1 { device device; wide type, data; };
struct event { device device; wide type, data; unsigned int gpu_instance, compute_instance; };
SIZE(struct event_v1, 24);
SIZE(struct event, 32);
AT(struct event, type, 8);
AT(struct event, data, 16);
AT(struct event, gpu_instance, 24);

#endif
