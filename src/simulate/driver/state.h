/*
 * What the state file says, parsed: plain data that is never changed once it is read.
 */
#ifndef STATE_H
#define STATE_H

#include "types.h"
#include <sys/stat.h>

/* Bounds of one file. What goes beyond them is not read. */
#define FILE_MAX_BYTES (4u << 20)
#define GPUS_MAX 256
#define LINES_MAX 4096
#define LINKS_MAX 18

/* Every number that a line may give. The order means nothing. */
#define NUMBERS(N)                                                                                     \
    N(mem_total) N(mem_used) N(mem_free) N(mem_reserved) N(bar1_total) N(bar1_used)                    \
    N(util) N(mem_util) N(enc_util) N(dec_util)                                                        \
    N(power_mw) N(power_instant_mw) N(limit_mw) N(limit_set_mw) N(limit_default_mw) N(limit_min_mw)    \
    N(limit_max_mw) N(energy_mj) N(energy_epoch)                                                       \
    N(temp) N(temp_memory) N(temp_slowdown) N(temp_shutdown) N(temp_mem_max) N(temp_gpu_max)           \
    N(sm_mhz) N(sm_max_mhz) N(mem_mhz) N(mem_max_mhz) N(video_mhz) N(video_max_mhz)                    \
    N(throttle) N(throttle_supported) N(violation_power_ns) N(violation_thermal_ns)                    \
    N(ecc) N(ecc_pending) N(ecc_corrected) N(ecc_uncorrected) N(ecc_corrected_total)                   \
    N(ecc_uncorrected_total) N(retired_single) N(retired_double) N(retired_pending)                    \
    N(rows_correctable) N(rows_uncorrectable) N(rows_pending) N(rows_failed)                           \
    N(rows_max) N(rows_high) N(rows_partial) N(rows_low) N(rows_none)                                  \
    N(pcie_gen) N(pcie_width) N(pcie_gen_max) N(pcie_width_max) N(pcie_replays) N(pcie_tx_kbps)        \
    N(pcie_rx_kbps) N(pcie_tx_bytes) N(pcie_rx_bytes) N(pcie_correctable) N(pcie_nonfatal)             \
    N(pcie_fatal) N(pci_device) N(pci_subsystem) N(minor)                                              \
    N(compute_mode) N(persistence) N(pstate) N(brand) N(arch) N(recovery) N(events) N(mig)             \
    N(mig_pending) N(mig_max)                                                                          \
    N(active) N(version) N(crc_errors) N(replay_errors) N(recovery_errors) N(ecc_errors) N(tx_kib)     \
    N(rx_kib) N(speed_mbps)                                                                            \
    N(gi) N(ci) N(sm_count) N(slices) N(ci_slices) N(copy_engines) N(decoders) N(encoders) N(jpegs)    \
    N(ofas)                                                                                            \
    N(pid) N(mem) N(sm) N(enc) N(dec) N(data)

#define TEXTS(T) T(uuid) T(name) T(serial) T(pci) T(vbios) T(compute) T(remote) T(kind) T(energy) T(type) T(gpu)

#define AS_NUMBER(name) NUMBER_##name,
#define AS_TEXT(name) TEXT_##name,
enum number { NUMBERS(AS_NUMBER) NUMBER_COUNT };
enum text { TEXTS(AS_TEXT) TEXT_COUNT };

enum kind { KIND_gpu, KIND_mig, KIND_link, KIND_proc, KIND_event, KIND_COUNT };

/* One line about a thing. `index` is the MIG device's or the link's; an event keeps its SEQ there. */
struct thing {
    int gpu;
    wide index;
    unsigned char has[NUMBER_COUNT];
    wide number[NUMBER_COUNT];
    const char *text[TEXT_COUNT];
};

struct things {
    struct thing *items;
    int count, room;
};

enum verb { VERB_return, VERB_hang, VERB_slow, VERB_COUNT };

/* An order about a call. `gpu` is -1 for all; `value` a code or microseconds. */
struct rule {
    enum verb verb;
    const char *call;
    int gpu;
    long value;
};

struct state {
    int users;
    char *bytes;
    const char *driver, *nvml, *cuda;
    int count;
    struct things things[KIND_COUNT];
    struct rule *rules;
    int rule_count, rule_room;
    unsigned char lost[GPUS_MAX], no_processes[GPUS_MAX];
    int unloaded, mismatch, lost_events, log_calls;
};

#endif
