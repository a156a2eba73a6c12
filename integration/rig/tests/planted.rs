//! The test of the rig: each deliberate fault of the driver is caught, and named. Needs `--cfg hv_fault`.

use hv_core::fault::Fault;
use hv_rig::planted::{ELSEWHERE, PLANTED};

#[test]
fn every_fault_of_the_driver_is_caught_by_the_rig_or_said_to_be_by_others() {
    assert!(PLANTED.len() >= 25, "{} are planted", PLANTED.len());
    for fault in Fault::ALL {
        let here = PLANTED
            .iter()
            .filter(|planted| planted.fault == fault)
            .count();
        let elsewhere = ELSEWHERE
            .iter()
            .filter(|(other, _)| *other == fault)
            .count();
        assert_eq!(here + elsewhere, 1, "{fault}");
    }
}

#[cfg(hv_fault)]
mod caught {
    //! One test per fault. Faults are switched on for the whole process, so they take turns.

    use std::sync::{Mutex, PoisonError};
    use std::time::{Duration, Instant};

    use hv_core::fault::Fault;
    use hv_rig::Vendor;
    use hv_rig::hunt::{LIVES, first, hunt};
    use hv_rig::life::{LIMIT, Life, shrink};
    use hv_rig::planted::{PLANTED, Planted};

    static TURN: Mutex<()> = Mutex::new(());

    /// Without a fault the same lives break nothing: what is caught below is due to the fault.
    #[test]
    fn nothing_is_caught_where_no_fault_is() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        for vendor in Vendor::ALL {
            assert_eq!(hunt(vendor, LIVES), None, "{vendor}");
        }
    }

    /// A test for each fault, and the list of all that have one.
    macro_rules! each {
        ($($test:ident: $fault:ident,)*) => {
            $(
                #[test]
                fn $test() {
                    caught(Fault::$fault);
                }
            )*

            const TESTED: &[Fault] = &[$(Fault::$fault),*];
        };
    }

    each! {
        protection_not_awaited: ProtectionNotAwaited,
        overlap_commands: OverlapCommands,
        leave_queue_errors: LeaveQueueErrors,
        window_not_reserved: WindowNotReserved,
        ignore_guest_width: IgnoreGuestWidth,
        ignore_zero_length_reads: IgnoreZeroLengthReads,
        bind_pass_through: BindPassThrough,
        old_receipt_opens: OldReceiptOpens,
        any_span_opens: AnySpanOpens,
        drop_last_scope: DropLastScope,
        keep_bus_mastering: KeepBusMastering,
        drop_command_levels: DropCommandLevels,
        command_not_awaited: CommandNotAwaited,
        skip_write_buffer_flush: SkipWriteBufferFlush,
        skip_first_flush: SkipFirstFlush,
        leave_translation_off: LeaveTranslationOff,
        keep_protected_memory: KeepProtectedMemory,
        context_low_first: ContextLowFirst,
        context_high_while_present: ContextHighWhilePresent,
        half_entry: HalfEntry,
        root_level_apart: RootLevelApart,
        skip_context_write_back: SkipContextWriteBack,
        skip_bind_flush: SkipBindFlush,
        bind_flush_new_id: BindFlushNewId,
        skip_context_flush: SkipContextFlush,
        unbind_context_other_id: UnbindContextOtherId,
        unbind_iotlb_other_id: UnbindIotlbOtherId,
        unbind_skips_alias: UnbindSkipsAlias,
        forget_phantoms: ForgetPhantoms,
        claim_keeps_bus_mastering: ClaimKeepsBusMastering,
        region_not_mapped: RegionNotMapped,
        region_not_asked: RegionNotAsked,
        region_handed_out: RegionHandedOut,
        domain_id_zero: DomainIdZero,
        free_id_early: FreeIdEarly,
        swap_neighbours: SwapNeighbours,
        ignore_permissions: IgnorePermissions,
        skip_table_write_back: SkipTableWriteBack,
        skip_publish_fence: SkipPublishFence,
        skip_link_write_back: SkipLinkWriteBack,
        skip_leaf_write_back: SkipLeafWriteBack,
        skip_map_fence: SkipMapFence,
        skip_unmap_write_back: SkipUnmapWriteBack,
        skip_iotlb_flush: SkipIotlbFlush,
        skip_sync_map: SkipSyncMap,
        leaf_hint_on_map: LeafHintOnMap,
        leaf_hint_always: LeafHintAlways,
        flush_range_short: FlushRangeShort,
        flush_wrong_domain: FlushWrongDomain,
        one_unit_flushed: OneUnitFlushed,
        skip_drain: SkipDrain,
        skip_fence: SkipFence,
        tail_past_ring: TailPastRing,
        queue_never_full: QueueNeverFull,
        reuse_status_word: ReuseStatusWord,
        wait_not_awaited: WaitNotAwaited,
        timeout_is_success: TimeoutIsSuccess,
        skip_cut_off: SkipCutOff,
        translation_on_at_end: TranslationOnAtEnd,
        free_page_early: FreePageEarly,
        free_tables_early: FreeTablesEarly,
        lose_last_frame: LoseLastFrame,
        redeem_wrong_range: RedeemWrongRange,
        clear_fault_before_reading: ClearFaultBeforeReading,
        keep_fault_overflow: KeepFaultOverflow,
        unmask_before_address: UnmaskBeforeAddress,
        upper_address_kept: UpperAddressKept,
        remappable_message: RemappableMessage,
        pending_is_empty: PendingIsEmpty,
        skip_unlink_write_back: SkipUnlinkWriteBack,
        skip_reclaim_flush: SkipReclaimFlush,
        reclaim_leaf_hint: ReclaimLeafHint,
        detach_leaf_hint: DetachLeafHint,
        drop_debt: DropDebt,
        split_not_written_back: SplitNotWrittenBack,
        merge_not_written_back: MergeNotWrittenBack,
        protect_not_written_back: ProtectNotWrittenBack,
        split_with_gap: SplitWithGap,
        split_shifts: SplitShifts,
        merge_with_gap: MergeWithGap,
        narrow_debt: NarrowDebt,
        shallow_debt: ShallowDebt,
        settle_skips_flush: SettleSkipsFlush,
        cut_forgets_debt: CutForgetsDebt,
        join_forgets_debt: JoinForgetsDebt,
        skip_detach_grace: SkipDetachGrace,
        lose_nested_tables: LoseNestedTables,
        keep_detached_tables: KeepDetachedTables,
        cancel_leaves_tombstones: CancelLeavesTombstones,
        skip_retire_grace: SkipRetireGrace,
        skip_thaw: SkipThaw,
        skip_relink: SkipRelink,
        skip_tombstone: SkipTombstone,
        skip_freeze_grace: SkipFreezeGrace,
        other_attempts_receipt: OtherAttemptsReceipt,
        bounce_skipped: BounceSkipped,
        bounce_copies_whole_page: BounceCopiesWholePage,
        bounce_keeps_old_bytes: BounceKeepsOldBytes,
        bounce_copies_back_whole_page: BounceCopiesBackWholePage,
        deferred_releases_range_early: DeferredReleasesRangeEarly,
        snoop_not_forced: SnoopNotForced,
        leave_gate_open: LeaveGateOpen,
        kept_bound_late: KeptBoundLate,
        leave_cxl_cache_on: LeaveCxlCacheOn,
        cxl_cache_not_asked: CxlCacheNotAsked,
        kept_gate_stays_open: KeptGateStaysOpen,
        kept_gap_is_open: KeptGapIsOpen,
        keeps_every_gate: KeepsEveryGate,
        doorbell_one_page_off: DoorbellOnePageOff,
        doorbell_is_memory: DoorbellIsMemory,
        doorbell_of_control: DoorbellOfControl,
        shared_writer_isolated: SharedWriterIsolated,
        writer_by_requester: WriterByRequester,
        gate_without_update: GateWithoutUpdate,
        gate_open_at_end: GateOpenAtEnd,
        control_not_awaited: ControlNotAwaited,
        enable_before_forgetting: EnableBeforeForgetting,
        acknowledge_unseen_errors: AcknowledgeUnseenErrors,
        leave_command_error: LeaveCommandError,
        stream_word_zero_first: StreamWordZeroFirst,
        stream_steps_without_sync: StreamStepsWithoutSync,
        skip_stream_write_back: SkipStreamWriteBack,
        skip_stream_forget: SkipStreamForget,
        unbind_keeps_stream: UnbindKeepsStream,
        unbind_keeps_translations: UnbindKeepsTranslations,
        unbind_without_sync: UnbindWithoutSync,
        skip_array_forget: SkipArrayForget,
        context_word_zero_first: ContextWordZeroFirst,
        unbind_keeps_context: UnbindKeepsContext,
        unbind_context_keeps_translations: UnbindContextKeepsTranslations,
        flush_other_vmid: FlushOtherVmid,
        skip_last_address: SkipLastAddress,
        sync_by_consumption: SyncByConsumption,
        pause_is_completion: PauseIsCompletion,
        ask_any_unit_for_events: AskAnyUnitForEvents,
        skip_command_write_back: SkipCommandWriteBack,
        drop_wrap_bit: DropWrapBit,
        keep_events: KeepEvents,
        keep_overflow: KeepOverflow,
        believe_empty_events: BelieveEmptyEvents,
        believe_any_index: BelieveAnyIndex,
        switch_through_abort: SwitchThroughAbort,
        switch_keeps_translations: SwitchKeepsTranslations,
        skip_look_after_route: SkipLookAfterRoute,
        leave_interrupts_off: LeaveInterruptsOff,
        reroute_while_on: RerouteWhileOn,
        resize_anywhere: ResizeAnywhere,
        split_by_small_pages: SplitBySmallPages,
        range_by_small_pages: RangeBySmallPages,
        written_by_small_pages: WrittenBySmallPages,
        clear_access_flag: ClearAccessFlag,
        drop_high_address: DropHighAddress,
        high_address_in_place: HighAddressInPlace,
        leaves_not_forced: LeavesNotForced,
        entry_not_forced: EntryNotForced,
        entry_notes_nothing: EntryNotesNothing,
        no_snoop_unasked: NoSnoopUnasked,
        refused_counts_as_done: RefusedCountsAsDone,
        refused_is_not_read_again: RefusedIsNotReadAgain,
        alone_is_enough: AloneIsEnough,
        skip_device_forget: SkipDeviceForget,
        device_forgets_first: DeviceForgetsFirst,
        device_forgets_one_page: DeviceForgetsOnePage,
        forget_other_device: ForgetOtherDevice,
        close_keeps_entry: CloseKeepsEntry,
        leave_old_translations: LeaveOldTranslations,
        silent_is_believed: SilentIsBelieved,
        silent_keeps_entry: SilentKeepsEntry,
        silent_is_opened: SilentIsOpened,
        ask_before_entry: AskBeforeEntry,
        translated_unchecked: TranslatedUnchecked,
        skip_resume: SkipResume,
        skip_page_response: SkipPageResponse,
        context_after_entry: ContextAfterEntry,
        first_stage_other_vmid: FirstStageOtherVmid,
        leaf_for_every_asid: LeafForEveryAsid,
        leaf_for_privileged: LeafForPrivileged,
        nested_without_parent: NestedWithoutParent,
        nested_flush_by_pages: NestedFlushByPages,
        user_command_other_vmid: UserCommandOtherVmid,
        user_contexts_kept: UserContextsKept,
        first_stages_kept: FirstStagesKept,
        reread_forgets_nothing: RereadForgetsNothing,
        quiet_skips_nested: QuietSkipsNested,
        empty_unsnooped_events: EmptyUnsnoopedEvents,
        tell_before_sync: TellBeforeSync,
        mix_kinds: MixKinds,
    }

    /// What a failure prints is short, and leads to the same failure.
    #[test]
    fn a_failure_is_made_short_and_can_be_seen_again() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        for fault in [
            Fault::SkipIotlbFlush,
            Fault::SkipLinkWriteBack,
            Fault::SkipDrain,
        ] {
            fault.switch_on();
            let failed = |seed| {
                let life = Life::new(Vendor::Vtd, seed, 300);
                let lived = life.live();
                lived.failure.is_some().then_some((life, lived))
            };
            let (_, (life, lived)) = first(LIVES, failed).unwrap();
            let rule = lived.failure.as_ref().unwrap().violation.rule;
            let start = Instant::now();
            let (short, _) = shrink(&life, lived, LIMIT);
            assert!(start.elapsed() < Duration::from_secs(60));
            let again = short.live().failure.unwrap();
            fault.switch_off();
            assert_eq!(again.violation.rule, rule, "{fault}: {}", short.command());
            assert!(!again.trace.is_empty());
            let operations = short.ops().len();
            println!("{fault}: {operations} operations: {}", short.command());
            assert!(
                operations <= 30,
                "{fault}: {operations} operations are left of 300"
            );
        }
    }

    /// Drills are about one thing each; lives come to the same by themselves, among everything else that they do.
    #[test]
    fn lives_alone_catch_what_is_wrong_with_device_tlbs_and_users_first_stages() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missed = Vec::new();
        for fault in [
            Fault::SkipDeviceForget,
            Fault::DeviceForgetsOnePage,
            Fault::CloseKeepsEntry,
            Fault::NestedFlushByPages,
            Fault::UserCommandOtherVmid,
            Fault::UserContextsKept,
        ] {
            fault.switch_on();
            let violation =
                |seed| Some(Life::new(Vendor::Smmu, seed, 300).live().failure?.violation);
            let found = first(LIVES, violation);
            fault.switch_off();
            let planted = PLANTED.iter().find(|planted| planted.fault == fault);
            let rules = planted.unwrap().rules;
            match found {
                Some((lives, violation)) if rules.contains(&violation.rule) => {
                    println!("{fault} after {lives} lives: {violation}");
                }
                other => missed.push((fault, other)),
            }
        }
        assert!(missed.is_empty(), "{missed:?}");
    }

    /// Firmware's regions are described, kept and handed out by code of both drivers.
    #[test]
    fn what_is_wrong_with_regions_of_firmware_is_caught_with_smmus_too() {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        for fault in [
            Fault::RegionNotMapped,
            Fault::RegionNotAsked,
            Fault::RegionHandedOut,
        ] {
            fault.switch_on();
            let found = hunt(Vendor::Smmu, 8);
            fault.switch_off();
            let planted = PLANTED.iter().find(|planted| planted.fault == fault);
            let (lives, violation) = found.unwrap_or_else(|| panic!("{fault} was not caught"));
            println!("{fault} after {lives} lives: {violation}");
            assert!(
                planted.unwrap().rules.contains(&violation.rule),
                "{violation}"
            );
        }
    }

    #[test]
    fn every_planted_fault_has_a_test() {
        for planted in PLANTED {
            assert!(TESTED.contains(&planted.fault), "{}", planted.fault);
        }
    }

    fn caught(fault: Fault) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let planted = PLANTED.iter().find(|planted| planted.fault == fault);
        let planted = planted.unwrap_or_else(|| panic!("{fault} is not planted"));
        for vendor in planted.vendors {
            caught_on(*vendor, planted);
        }
    }

    fn caught_on(vendor: Vendor, planted: &Planted) {
        let fault = planted.fault;
        fault.switch_on();
        let found = hunt(vendor, LIVES);
        fault.switch_off();
        let Some((lives, violation)) = found else {
            panic!("{fault} was not caught in {LIVES} lives ({vendor})");
        };
        println!("{fault} after {lives} lives ({vendor}): {violation}");
        let rules = planted.rules;
        assert!(
            rules.contains(&violation.rule),
            "{fault} was caught after {lives} lives, as {:?}; expected one of {rules:?}: {}",
            violation.rule,
            violation.what
        );
    }
}
