//! Deliberate faults of what only SMMUs have.

macro_rules! with_smmus {
    ($($others:tt)*) => {
        faults! {
            $($others)*
            /// An SMMU is turned off although requests pass it then.
            LeaveGateOpen = "leave_gate_open",
            /// The gate is told to close without the bit that makes an SMMU look.
            GateWithoutUpdate = "gate_without_update",
            /// The gate of an SMMU that is shut down is opened, as power-on leaves it.
            GateOpenAtEnd = "gate_open_at_end",
            /// Nobody waits until an SMMU acknowledges what was turned on or off.
            ControlNotAwaited = "control_not_awaited",
            /// An SMMU translates before it forgot what it cached.
            EnableBeforeForgetting = "enable_before_forgetting",
            /// Errors are acknowledged that nobody has seen.
            AcknowledgeUnseenErrors = "acknowledge_unseen_errors",
            /// A reset leaves the error for which the command queue stopped.
            LeaveCommandError = "leave_command_error",
            /// The word that makes a stream table entry live is written first.
            StreamWordZeroFirst = "stream_word_zero_first",
            /// The steps in which a stream table entry changes have no sync between them.
            StreamStepsWithoutSync = "stream_steps_without_sync",
            /// Stream table entries, and queues, are not written back.
            SkipStreamWriteBack = "skip_stream_write_back",
            /// That a stream aborted is not forgotten when it is bound.
            SkipStreamForget = "skip_stream_forget",
            /// The entry of an unbound stream is not forgotten.
            UnbindKeepsStream = "unbind_keeps_stream",
            /// Translations of an unbound stream's domain are not forgotten.
            UnbindKeepsTranslations = "unbind_keeps_translations",
            /// Translations of an unbound stream may be forgotten before its entry is.
            UnbindWithoutSync = "unbind_without_sync",
            /// That there was no array of entries is not forgotten when one is linked.
            SkipArrayForget = "skip_array_forget",
            /// The word that makes a context descriptor valid is written before the others are forgotten.
            ContextWordZeroFirst = "context_word_zero_first",
            /// The context descriptor of an unbound substream is not forgotten.
            UnbindKeepsContext = "unbind_keeps_context",
            /// Translations of an unbound substream's domain are not forgotten.
            UnbindContextKeepsTranslations = "unbind_context_keeps_translations",
            /// An invalidation names the next VMID.
            FlushOtherVmid = "flush_other_vmid",
            /// An invalidation of single addresses leaves out the last.
            SkipLastAddress = "skip_last_address",
            /// A sync counts as completed when what is before it was read.
            SyncByConsumption = "sync_by_consumption",
            /// Commands are not written back.
            SkipCommandWriteBack = "skip_command_write_back",
            /// The index of commands is written without its wrap bit.
            DropWrapBit = "drop_wrap_bit",
            /// Events that were taken are not given back to an SMMU.
            KeepEvents = "keep_events",
            /// An overflow of the event queue is not acknowledged.
            KeepOverflow = "keep_overflow",
            /// An entry of the event queue that an SMMU did not write is told as an event.
            BelieveEmptyEvents = "believe_empty_events",
            /// A live entry becomes another one by way of one that aborts, where one store would do.
            SwitchThroughAbort = "switch_through_abort",
            /// What a unit made by the entry that a live one was is not forgotten.
            SwitchKeepsTranslations = "switch_keeps_translations",
            /// An index of records is believed that says that there are more than the queue has room for.
            BelieveAnyIndex = "believe_any_index",
            /// Interrupts are said to be on, and are not.
            LeaveInterruptsOff = "leave_interrupts_off",
            /// Where the messages of an interrupt go changes while it is on.
            RerouteWhileOn = "reroute_while_on",
            /// A flush does not reach the TLBs of devices.
            SkipDeviceForget = "skip_device_forget",
            /// A device is told to forget before its unit has forgotten.
            DeviceForgetsFirst = "device_forgets_first",
            /// Of several pages a device is told to forget the first alone.
            DeviceForgetsOnePage = "device_forgets_one_page",
            /// Another device than the one with the TLB is told to forget.
            ForgetOtherDevice = "forget_other_device",
            /// Translated requests of a device pass after its TLB was closed.
            CloseKeepsEntry = "close_keeps_entry",
            /// A device's TLB is opened with what it holds of before.
            LeaveOldTranslations = "leave_old_translations",
            /// A device is told to ask for translations before its entry lets it.
            AskBeforeEntry = "ask_before_entry",
            /// Requests that say they are translated pass unchecked.
            TranslatedUnchecked = "translated_unchecked",
            /// Stalled requests are not answered.
            SkipResume = "skip_resume",
            /// Requests for pages are not answered.
            SkipPageResponse = "skip_page_response",
            /// Syncs ask for events of SMMUs that send none.
            AskAnyUnitForEvents = "ask_any_unit_for_events",
            /// Page sizes change under a device's eyes on every SMMU.
            ResizeAnywhere = "resize_anywhere",
            /// Leaves are made without the access flag.
            ClearAccessFlag = "clear_access_flag",
            /// A stream's entry leads to its context descriptor before that is written.
            ContextAfterEntry = "context_after_entry",
            /// Invalidations of first stages name a guest that is none.
            FirstStageOtherVmid = "first_stage_other_vmid",
            /// Leaves of first stages are kept for every ASID.
            LeafForEveryAsid = "leaf_for_every_asid",
            /// Leaves of first stages are for privileged requests alone.
            LeafForPrivileged = "leaf_for_privileged",
            /// A user's first stage is bound without the second stage of its parent.
            NestedWithoutParent = "nested_without_parent",
            /// A flush of a parent names pages of its own while a user's first stage stands on it.
            NestedFlushByPages = "nested_flush_by_pages",
            /// A user's invalidation names the next VMID.
            UserCommandOtherVmid = "user_command_other_vmid",
            /// A user's context descriptors are kept although it asks to have them forgotten.
            UserContextsKept = "user_contexts_kept",
            /// Where all of a user's first stages is to be forgotten, what they translated is kept.
            FirstStagesKept = "first_stages_kept",
            /// Of a user's streams as many have their contexts forgotten as go into one batch.
            FirstBatchAlone = "first_batch_alone",
            /// A stream that is made quiet goes on by what its unit has cached.
            RereadForgetsNothing = "reread_forgets_nothing",
            /// What is bound while its group is cut off is not made quiet.
            LateBoundStaysLoud = "late_bound_stays_loud",
            /// Entries of a group that was cut off are read anew for each record of it that a look finds.
            RereadForEachRecord = "reread_for_each_record",
            /// An entry that a unit could not be asked to read anew is not asked for again.
            RereadOnce = "reread_once",
            /// What firmware's tables had a unit record is told as somebody's.
            KeepFirmwaresEvents = "keep_firmwares_events",
            /// A unit that does not wake keeps those behind it asleep.
            WakeStopsAtTheFirst = "wake_stops_at_the_first",
            /// A user's first stage is put on its parent while units may hold what is out of the parent's tables already.
            NestedOnWhatIsHeld = "nested_on_what_is_held",
            /// An entry that aborts already is not read anew, whether or not the unit has read that.
            QuietOnceIsQuiet = "quiet_once_is_quiet",
            /// Of a page that was written a guest is told the first 4 KiB.
            MarkFirstPage = "mark_first_page",
            /// Faults of a user's first stage go on when its device is cut off.
            QuietSkipsNested = "quiet_skips_nested",
            /// Hardware goes on past what stands unanswered before anybody knows that it stood.
            ResumeBeforeHold = "resume_before_hold",
            /// A command that was taken out of a unit's queue, since the unit refuses it, counts as done.
            RefusedCountsAsDone = "refused_counts_as_done",
            /// A command that a unit refuses is taken out before the unit has read it once more.
            RefusedIsNotReadAgain = "refused_is_not_read_again",
            /// A device that answers only when it is asked alone is asked again and again.
            AloneIsEnough = "alone_is_enough",
            /// A device that does not say that it forgot is taken to have forgotten.
            SilentIsBelieved = "silent_is_believed",
            /// A device that does not answer goes on by its entry.
            SilentKeepsEntry = "silent_keeps_entry",
            /// A device that does not answer goes on by what its unit has cached of its entry.
            SilentEntryNotReread = "silent_entry_not_reread",
            /// A device that did not forget what it holds of before is let ask all the same.
            SilentIsOpened = "silent_is_opened",
            /// Devices that do not answer are asked by all that stands in the queue, one time-out after the other.
            MendAsksAll = "mend_asks_all",
            /// Who waits for a queue that is mended gives up in the middle of that.
            MendingIsNotWaitedFor = "mending_is_not_waited_for",
            /// A CPU that finds out which devices do not answer holds back what is retired for all of that time.
            MenderStays = "mender_stays",
            /// A reset waits for devices that were asked before it.
            ResetHeedsOldAnswers = "reset_heeds_old_answers",
            /// A device that did not answer before it was let ask is told of no further flush.
            RefusedIsForgotten = "refused_is_forgotten",
            /// A device goes on asking for translations as firmware let it.
            LeaveAtsOn = "leave_ats_on",
            /// A function goes on reaching memory past its unit (CXL.cache) as whoever had it before let it.
            LeaveCxlCacheOn = "leave_cxl_cache_on",
            /// Whether a function reaches memory past its unit (CXL.cache) is not asked when its group is attached.
            CxlCacheNotAsked = "cxl_cache_not_asked",
            /// A reset strikes out a device that is being let ask just then.
            ResetForgetsOpening = "reset_forgets_opening",
            /// An entry changes by stores that take nothing of what others did to it meanwhile.
            UpdateByStore = "update_by_store",
            /// A group that is cut off goes on by what its devices keep.
            QuietKeepsAsking = "quiet_keeps_asking",
            /// The short way down goes through whatever stands in a word.
            ShortWayComparesNothing = "short_way_compares_nothing",
            /// A mapper's short way down goes through links that a reclaimer has marked.
            ShortWaySkipsMarks = "short_way_skips_marks",
            /// The parts of a split page lie as far apart as those of a table of 4 KiB pages.
            SplitBySmallPages = "split_by_small_pages",
            /// The invalidation of a range counts in pages of 4 KiB.
            RangeBySmallPages = "range_by_small_pages",
            /// What a device wrote of a page counts as a page of a table of 4 KiB pages.
            WrittenBySmallPages = "written_by_small_pages",
            /// The upper half of the address of a fault event's message stays what it was.
            UpperAddressKept = "upper_address_kept",
            /// A fault event's message is of the format that interrupt remapping translates.
            RemappableMessage = "remappable_message",
        }
    };
}
